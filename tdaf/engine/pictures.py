"""What TensorBoard shows of a few validation samples: predictions, and the attention maps of every flow and stage."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tdaf.engine import seeds
from tdaf.engine.log import RunFolder
from tdaf.engine.precision import Precision, float32
from tdaf.errors import UnreadableSample
from tdaf.model.maps import attention_maps
from tdaf.task import Batch, Dataset, Task

MOMENTS = 4  # of a clip, evenly over its time
TILE = 128  # pixels of the long side of one attention map in the grid


@torch.no_grad()
def show(
    network: nn.Module, task: Task, dataset: Dataset, count: int, precision: Precision, folder: RunFolder, step: int
) -> None:
    """Draws the first `count` readable samples of `dataset` into TensorBoard."""
    batch = _first(dataset, count)
    if batch is None:
        return
    batch = precision.move(batch)
    network.eval()
    with precision.autocast():
        outputs, maps = network(batch["input"]), attention_maps(network, batch["input"])
    network.train()
    for name, pictures in task.pictures(float32(outputs), batch).items():
        for place, picture in enumerate(pictures):
            folder.picture(f"{name}/{place}", picture, step)
    if maps:
        for place in range(len(batch["input"])):
            folder.picture(f"attention/{place}", attention_grid(batch["input"], maps, place), step)


def _first(dataset: Dataset, count: int) -> Batch | None:
    samples, indices = [], []
    with seeds.kept():
        for index in range(len(dataset)):
            if len(samples) == count:
                break
            try:
                samples.append(dataset[index])
                indices.append(index)
            except UnreadableSample:
                continue
        return {**dataset.collate(samples), "index": torch.tensor(indices)} if samples else None


def attention_grid(inputs: Tensor, maps: dict[tuple[int, int], Tensor], place: int) -> Tensor:
    """uint8 (3, H, W): the input, then a row a flow and a column a stage, each mask from black (0) to white (1). All
    are of the input's shape, so that a place in one is the same place in all. A clip has such a grid for each of
    `MOMENTS` moments, the first on top.

    inputs: (B, [V,] 3, [T,] H, W), of whose sample `place` the middle view is shown. maps: (flow, stage) to masks
    (B V, 1, [T,] h, w).
    """
    dims = next(iter(maps.values())).dim() - 2
    views = inputs.shape[1] if inputs.dim() == dims + 3 else 1
    row = place * views + (views - 1) // 2
    shown = _bytes(inputs.reshape(-1, *inputs.shape[-dims - 1 :])[row].detach().cpu())
    masks = {key: mask[row].detach().float().cpu() for key, mask in maps.items()}
    if dims == 2:
        return _grid(shown, masks)
    moments = [(moment + 0.5) / MOMENTS for moment in range(MOMENTS)]
    grids = [_grid(_at(shown, moment), {key: _at(mask, moment) for key, mask in masks.items()}) for moment in moments]
    return torch.cat(grids, 1)


def _at(clip: Tensor, moment: float) -> Tensor:
    """(C, T, h, w) -> (C, h, w), the frame after this part of the time."""
    return clip[:, int(moment * clip.shape[1])]


def _grid(shown: Tensor, maps: dict[tuple[int, int], Tensor]) -> Tensor:
    height, width = (max(1, round(TILE * side / max(shown.shape[1:]))) for side in shown.shape[1:])
    flows = sorted({flow for flow, _ in maps})
    stages = sorted({stage for _, stage in maps})
    grid = torch.zeros(3, len(flows) * height, (1 + len(stages)) * width, dtype=torch.uint8)
    small = F.interpolate(shown[None].float(), (height, width), mode="bilinear", antialias=True)[0]
    grid[:, :height, :width] = small.round().clamp(0, 255).to(torch.uint8)
    for (flow, stage), mask in maps.items():
        tile = F.interpolate(mask[None], (height, width), mode="nearest-exact")[0]
        top, left = flows.index(flow) * height, (1 + stages.index(stage)) * width
        grid[:, top : top + height, left : left + width] = (tile * 255).round().to(torch.uint8)
    return grid


def _bytes(image: Tensor) -> Tensor:
    """An image that is not in bytes, from its smallest value (black) to its largest (white)."""
    if image.dtype == torch.uint8:
        return image
    low, high = image.float().aminmax()
    return ((image.float() - low) * (255 / (high - low).clamp(min=1e-6))).round().to(torch.uint8)
