"""The feature pyramid (Lin et al. 2017) with the two coarser levels of RetinaNet."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tdaf.errors import UserError
from tdaf.model.staged import Staged

LATERAL = 3  # levels that have a map of the backbone: C3 to C5


def level_strides(body: Staged) -> list[int]:
    """The strides of P3..P7: those of the body's last three stages, then twice and four times the last.

    8..128 for every published backbone; smaller with a stem for small inputs. Raises UserError for a body of clips, of
    fewer stages, or whose last three maps do not halve from one to the next.
    """
    strides = body.strides[-LATERAL:]
    halving = all(after == 2 * before for before, after in zip(strides, strides[1:]))
    if body.dims != 2 or len(strides) < LATERAL or not halving:
        raise UserError(
            f"backbone: detection needs images and three last stages that halve the map each (strides 8, 16, 32, say); "
            f"this one has dims={body.dims} and strides {', '.join(map(str, body.strides))}"
        )
    return [*strides, 2 * strides[-1], 4 * strides[-1]]


class Pyramid(nn.Module):
    """C3, C4, C5 to P3..P7. P6 and P7 come from P5, with a ReLU before P7.

    widths: channels of C3..C5. channels: of every level. Kaiming uniform with a = 1, biases 0 (tianzhi0549/FCOS,
    fcos_core/modeling/backbone/fpn.py).
    """

    def __init__(self, widths: list[int], channels: int = 256) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in widths)
        self.p6 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_uniform_(part.weight, a=1)
                nn.init.zeros_(part.bias)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """maps (B, widths[i], h, w), the finest first -> five levels (B, channels, h, w), the finest first."""
        levels: list[Tensor] = []
        above: Tensor | None = None
        for x, lateral, smooth in reversed(list(zip(maps, self.lateral, self.smooth, strict=True))):
            x = lateral(x)
            if above is not None:
                # to the size of the finer map, which is not twice the coarser one's where it is odd
                x = x + F.interpolate(above, size=x.shape[2:], mode="nearest")
            above = x
            levels.insert(0, smooth(x))
        levels.append(self.p6(levels[-1]))
        levels.append(self.p7(F.relu(levels[-1])))
        return levels
