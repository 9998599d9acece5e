"""The attention mechanisms of configs/attention/, as the command line gives them to a backbone, and counts of them."""

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from tdaf.build import make
from tdaf.measure import gflops
from tdaf.model.backbones.resnet import resnet
from tdaf.model.inflate import inflate
from tdaf.model.staged import Staged

FOLDER = Path(__file__).parent.parent / "configs" / "attention"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def mechanism(name: str, **settings: Any) -> Any:
    """None for "none"."""
    node = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return make({**node, **settings}, "attention") if "_target_" in node else None


def complete(staged: Staged, classes: int) -> Staged:
    """With attention=abn: the branch for so many classes, as its task makes it."""
    staged.stages[-1].name_classes(staged.widths[-1], classes)
    staged.widths[-1] += classes
    return staged


def on_meta(depth: int = 50, name: str = "none", **settings: Any) -> Staged:
    """A ResNet with the mechanism, without values."""
    with torch.device("meta"):
        return resnet(depth, attention=mechanism(name, **settings))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def gigas(module: nn.Module, *size: int) -> float:
    """Of one input (1, *size), 3 x 224 x 224 if not given."""
    return gflops(module.to("meta"), torch.zeros(1, *(size or (3, 224, 224)), device="meta")).total


def places(module: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [name for name, part in module.named_modules() if isinstance(part, kind)]


def drawn(block: nn.Module, channels: int, dims: int = 2) -> nn.Module:
    """The block, for clips with dims 3, in eval mode with all values drawn."""
    if dims == 3:
        inflate(Staged([nn.Sequential(block)], [channels], [1]))
    for tensor in block.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_(0, 0.5) if tensor.ndim > 1 else tensor.uniform_(0.5, 1.5)
    return block.eval()


def cells(x: Tensor) -> list[tuple[int, ...]]:
    """The indices of all places of a map (B, C, *size)."""
    return [tuple(p) for p in torch.cartesian_prod(*[torch.arange(s) for s in x.shape[2:]]).tolist()]


def normed(x: Tensor, state: dict[str, Tensor], name: str = "norm") -> Tensor:
    """Batch norm of one place's channels (C,) by its statistics."""
    scale = state[f"{name}.weight"] / (state[f"{name}.running_var"] + 1e-5).sqrt()
    return (x - state[f"{name}.running_mean"]) * scale + state[f"{name}.bias"]
