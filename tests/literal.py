"""Eqs. 1-5 of the paper with plain loops, for tests."""

import copy
import math

import torch
from torch import Tensor, nn

from tdaf.model.flows import TDAF


def shrink_axis(x: Tensor, axis: int, how: str) -> Tensor:
    """Half of one axis, size ceil(s / 2), written out pixel by pixel."""
    s = x.shape[axis]
    pixels = []
    for i in range(math.ceil(s / 2)):
        if how == "stride":
            pixels.append(x.select(axis, 2 * i))
        elif how == "area":
            cell = range(2 * i, min(2 * i + 2, s))
            pixels.append(sum(x.select(axis, j) for j in cell) / len(cell))
        else:
            place = min(max((i + 0.5) * s / math.ceil(s / 2) - 0.5, 0), s - 1)
            low = math.floor(place)
            high = min(low + 1, s - 1)
            pixels.append(x.select(axis, low) * (1 - place + low) + x.select(axis, high) * (place - low))
    return torch.stack(pixels, axis)


def literal(
    plain: nn.Module,
    tdaf: TDAF,
    x: Tensor,
    n_flows: int,
    how: str,
    gated: list[int],
    eta: float,
    mfbn: bool,
    detach=False,
    preactivation=False,
    deeper=0,
):
    """Eqs. 1-5 with plain loops. Returns the last flow's maps, all masks, and the modules used by flow."""
    n_stages = len(plain.stages)
    inputs = {n_flows: x}
    for n in range(n_flows - 1, 0, -1):  # Eq. 2
        inputs[n] = inputs[n + 1]
        for axis in range(2, x.dim()):
            inputs[n] = shrink_axis(inputs[n], axis, how)
    h, g = copy.deepcopy(plain.stages), copy.deepcopy(tdaf.gates)
    used, masks, maps = {}, {}, {}
    for n in range(1, n_flows + 1):
        used[n] = (copy.deepcopy(plain.stages), copy.deepcopy(tdaf.gates)) if mfbn else (h, g)  # Eq. 4
        value = inputs[n]
        for number in range(1, min(n_stages, n_stages - (n_flows - n) + deeper) + 1):  # Eq. 1
            stage, has_gate = used[n][0][number - 1], (n - 1, number) in maps and number in gated
            value = (stage[:-1] if preactivation and has_gate else stage)(value)
            if has_gate:  # Eqs. 3 and 5
                above = maps[n - 1, number]
                for axis in range(2, x.dim()):  # of deconvolutions, whose maps may be larger than half
                    above = above.narrow(axis, 0, min(above.shape[axis], math.ceil(value.shape[axis] / 2)))
                gate = used[n][1][str(number)]
                masks[n, number] = gate(above.detach() if detach else above, value.shape[2:])
                raised = eta if gate.logit is None else 1 / (1 + torch.exp(-gate.logit))
                if preactivation:
                    value = torch.relu(value + masks[n, number] + raised - 1)
                else:
                    value = value * (masks[n, number] + raised)
            maps[n, number] = value
    return [maps[n_flows, number] for number in range(1, n_stages + 1)], masks, used


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float = 1e-6) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * max(1.0, theirs.abs().max())


def loss_of(maps: list[Tensor]) -> Tensor:
    return sum(m.square().mean() for m in maps)
