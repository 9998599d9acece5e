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
from tdaf.task import Dataset, Task

TILE = 128  # pixels a side of one attention map in the grid


@torch.no_grad()
def show(
    network: nn.Module, task: Task, dataset: Dataset, count: int, precision: Precision, folder: RunFolder, step: int
) -> None:
    """Draws the first `count` readable samples of `dataset` into TensorBoard."""
    samples = []
    with seeds.kept():
        for index in range(len(dataset)):
            if len(samples) == count:
                break
            try:
                samples.append(dataset[index])
            except UnreadableSample:
                continue
        batch = precision.move(dataset.collate(samples))
    network.eval()
    with precision.autocast():
        outputs, maps = network(batch["input"]), attention_maps(network, batch["input"])
    network.train()
    for place, picture in enumerate(task.pictures(batch["input"].cpu(), float32(outputs))):
        folder.picture(f"prediction/{place}", picture, step)
        if maps:
            folder.picture(f"attention/{place}", attention_grid(picture, maps, place), step)


def attention_grid(picture: Tensor, maps: dict[tuple[int, int], Tensor], place: int) -> Tensor:
    """uint8 (3, H, W): the picture, then a row a flow and a column a stage, each mask from black (0) to white (1).

    maps: (flow, stage) to masks (B, 1, [T,] h, w) of which sample `place` is drawn; a clip's is its mean over time.
    """
    flows = sorted({flow for flow, _ in maps})
    stages = sorted({stage for _, stage in maps})
    grid = torch.zeros(3, len(flows) * TILE, (1 + len(stages)) * TILE, dtype=torch.uint8)
    small = F.interpolate(picture[None].float(), (TILE, TILE), mode="bilinear", antialias=True)[0]
    grid[:, :TILE, :TILE] = small.round().clamp(0, 255).to(torch.uint8)
    for (flow, stage), masks in maps.items():
        mask = masks[place].detach().float().cpu()
        mask = mask.mean(1) if mask.dim() == 4 else mask
        tile = F.interpolate(mask[None], (TILE, TILE), mode="nearest")[0]
        row, column = flows.index(flow) * TILE, (1 + stages.index(stage)) * TILE
        grid[:, row : row + TILE, column : column + TILE] = (tile * 255).round().to(torch.uint8)
    return grid
