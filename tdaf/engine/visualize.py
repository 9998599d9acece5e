"""What TensorBoard shows of validation samples: predictions, and the attention maps of every flow and stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from tdaf.engine.data import preserved_generators, seed_everything
from tdaf.engine.evaluate import eval_mode
from tdaf.engine.log import RunFolder
from tdaf.engine.precision import Precision, float32
from tdaf.errors import UnreadableSample
from tdaf.media.attention_sheet import Panel, Place, sheet
from tdaf.model.flows import TDAF
from tdaf.model.maps import attention_maps, mask_eta, mask_strides
from tdaf.task import Dataset, Task

MOMENTS = 4  # of a clip, evenly over its time
TILE = 192  # pixels of the long side of one attention map in TensorBoard


@torch.no_grad()
def log_samples(
    network: nn.Module, task: Task, dataset: Dataset, count: int, precision: Precision, folder: RunFolder, step: int
) -> None:
    """Draws the first `count` readable samples of `dataset` into TensorBoard: what `task.visualize` makes of them, if
    the task has it, and their attention maps, where the network has any. Each module keeps its mode, train or eval."""
    with preserved_generators():
        found = _readable(dataset, range(len(dataset)), count)
        if not found:
            return
        batch = {**dataset.collate(list(found.values())), "index": torch.tensor(list(found))}
    batch = precision.move(batch)
    one_tdaf = sum(isinstance(module, TDAF) for module in network.modules()) == 1
    with eval_mode(network), precision.autocast():
        outputs = network(batch["input"])
        masks = attention_maps(network, batch["input"]) if one_tdaf else {}
    visualize = getattr(task, "visualize", None)
    for name, pictures in visualize(float32(outputs), batch).items() if visualize else ():
        for place, picture in enumerate(pictures):
            folder.picture(f"{name}/{place}", picture, step)
    if masks:
        strides, eta = mask_strides(network), mask_eta(network)
        for place in range(len(batch["input"])):
            panels = attention_panels(batch["input"], masks, place)
            folder.picture(f"attention/{place}", sheet(panels, strides, eta, tile=TILE), step)


def targets(task: Task, dataset: Dataset, indices: Sequence[int], seed: int) -> list[Tensor]:
    """What `task.draw_targets` makes of training samples, augmented as `seed` says; the readable ones of `indices`."""
    with preserved_generators():
        seed_everything(seed)
        samples = list(_readable(dataset, indices, len(indices)).values())
        return task.draw_targets(dataset.collate(samples)) if samples else []


def attention_panels(
    inputs: Tensor,
    masks: Mapping[Place, Tensor],
    place: int,
    frames: Sequence[int] | None = None,
    title: str = "",
) -> list[Panel]:
    """What `sheet` draws of one sample of a batch.

    Args:
        inputs: (B, [V,] 3, [T,] H, W); of several views the middle one is shown.
        masks: (B V, 1, [T,] h, w), as `attention_maps` gives them for these inputs.
        place: the sample's in the batch.
        frames: of a clip, 0-based, a panel each; without them `MOMENTS`, evenly over its time.
        title: above each panel.
    """
    dims = next(iter(masks.values())).dim() - 2
    views = inputs.shape[1] if inputs.dim() == dims + 3 else 1
    row = place * views + (views - 1) // 2
    shown = _bytes(inputs.reshape(-1, *inputs.shape[-dims - 1 :])[row].detach().cpu())
    own = {key: mask[row, 0].detach().float().cpu() for key, mask in masks.items()}
    if dims == 2:
        return [Panel(shown, own, title)]
    length = shown.shape[1]
    if frames is None:
        frames = [int((moment + 0.5) / MOMENTS * length) for moment in range(MOMENTS)]
    panels = []
    for frame in frames:
        # a mask's steps in time lie evenly over the clip's frames
        at_frame = {key: mask[frame * mask.shape[0] // length] for key, mask in own.items()}
        moment = f"sampled frame {frame + 1} of {length}"
        panels.append(Panel(shown[:, frame], at_frame, f"{title}, {moment}" if title else moment))
    return panels


def _readable(dataset: Dataset, indices: Sequence[int], count: int) -> dict[int, Any]:
    """The first `count` samples of `indices` that can be read, by their index."""
    found: dict[int, Any] = {}
    for index in indices:
        if len(found) == count:
            break
        with suppress(UnreadableSample):
            found[index] = dataset[index]
    return found


def _bytes(image: Tensor) -> Tensor:
    """An image that is not in bytes, from its smallest value (black) to its largest (white)."""
    if image.dtype == torch.uint8:
        return image
    low, high = image.float().aminmax()
    return ((image.float() - low) * (255 / (high - low).clamp(min=1e-6))).round().to(torch.uint8)
