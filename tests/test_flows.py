"""TDAF against a literal transcription of Eqs. 1-5, and what else it promises."""

from __future__ import annotations

import copy

import pytest
import torch
from literal import assert_near, literal, loss_of, shrink_axis
from tiny import settle, tiny
from torch import Tensor

from tdaf.errors import UserError
from tdaf.model.flows import TDAF, MultiScale
from tdaf.model.flows import halve

torch.set_num_threads(1)
SIZES = {2: (43, 37), 3: (17, 35, 30)}


CASES = [(dims, flows, "area", "all", 0.5, "mfbn", 3) for dims in (2, 3) for flows in (1, 2, 3, 4)]
CASES += [(2, 3, how, "all", 0.5, "mfbn", 3) for how in ("bilinear", "stride")]
CASES += [(3, 3, how, "all", 0.5, "mfbn", 3) for how in ("bilinear", "stride")]
CASES += [(2, 4, "area", gated, 0.5, "mfbn", 3) for gated in ([1], [2, 3], [3], [])]
CASES += [(2, 3, "area", "all", eta, "mfbn", 3) for eta in (0.0, 1.0)]
CASES += [(dims, 3, "area", "all", 0.5, "shared", 3) for dims in (2, 3)]
CASES += [(2, 3, "area", "all", 0.5, "mfbn", anar) for anar in (2, 5, 7)]


@pytest.mark.parametrize(("dims", "flows", "how", "gated", "eta", "norm", "anar"), CASES)
def test_equals_the_equations(dims, flows, how, gated, eta, norm, anar):
    torch.manual_seed(0)
    plain = tiny(dims).double()
    settings = dict(flows=flows, eta=eta, downsample=how, gated=gated, norm=norm, anar=anar, anar_width=32)
    tdaf = TDAF(copy.deepcopy(plain), **settings).double()
    x = torch.randn(3, 3, *SIZES[dims], dtype=torch.float64)
    stages = [1, 2, 3] if gated == "all" else gated
    expected, masks, used = literal(plain, tdaf, x, flows, how, stages, eta, norm == "mfbn")
    assert len(masks) == sum(1 for n in range(2, flows + 1) for s in stages if s < 4 - (flows - n))
    maps = tdaf(x)
    assert len(maps) == 4
    for ours, theirs in zip(maps, expected, strict=True):
        assert_near(ours, theirs)
    for n in range(1, flows + 1):
        modules = {"stages": tdaf.stages, "gates": tdaf.gates}
        if n < flows and norm == "mfbn":
            modules = tdaf.earlier[n - 1]
        theirs = {f"stages.{k}": v for k, v in used[n][0].named_buffers()}
        theirs |= {f"gates.{k}": v for k, v in used[n][1].named_buffers()}
        checked = 0
        for name in ("stages", "gates"):
            for key, value in modules[name].named_buffers():
                assert_near(value.double(), theirs[f"{name}.{key}"].double())
                checked += 1
        assert checked >= 3
    for which, module in enumerate((tdaf.stages, tdaf.gates)):
        for name, parameter in module.named_parameters():
            (ours,) = torch.autograd.grad(loss_of(maps), parameter, retain_graph=True)
            # A shared weight's gradient is the sum of what each flow's copy of it gets.
            copies = [used[n][which].get_parameter(name) for n in (range(1, flows + 1) if norm == "mfbn" else [1])]
            found = torch.autograd.grad(loss_of(expected), copies, retain_graph=True, allow_unused=True)
            assert_near(ours, sum(grad for grad in found if grad is not None))


def test_float32_and_eval_mode_equal_the_equations():
    torch.manual_seed(0)
    tdaf = settle(TDAF(tiny(), flows=3, anar=5, anar_width=64)).eval()
    plain = tiny().eval()
    x = torch.randn(2, 3, 61, 45)
    maps = tdaf(x)
    # In eval mode each flow reads its own statistics: run the equations on the flows' own modules.
    above: list[Tensor] = []
    for n in (1, 2, 3):
        value = x
        for _ in range(3 - n):
            value = halve(value, 2)
        modules = {"stages": tdaf.stages, "gates": tdaf.gates} if n == 3 else tdaf.earlier[n - 1]
        now = []
        for number, stage in enumerate(modules["stages"], 1):
            value = stage(value)
            if number <= len(above):
                value = value * (modules["gates"][str(number)](above[number - 1], value.shape[2:]) + 0.5)
            now.append(value)
        above = now
    for ours, theirs in zip(maps, above, strict=True):
        assert_near(ours, theirs, 1e-5)
    assert not torch.allclose(maps[-1], plain(x)[-1])


@pytest.mark.parametrize("how", ["area", "bilinear", "stride"])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 2), (4, 8)])
def test_pyramid_sizes(how, size):
    x = torch.randn(2, 3, *size)
    expected = x
    for axis in (2, 3):
        expected = shrink_axis(expected, axis, how)
    assert_near(halve(x, 2, how), expected)


def test_one_flow_is_the_plain_network():
    torch.manual_seed(0)
    plain = tiny()
    tdaf = TDAF(copy.deepcopy(plain), flows=1)
    x = torch.randn(2, 3, 33, 33)
    assert list(tdaf.state_dict()) == list(plain.state_dict())
    for ours, theirs in zip(tdaf(x), plain(x), strict=True):
        assert torch.equal(ours, theirs)
    assert (tdaf.widths, tdaf.strides, tdaf.dims, tdaf.classifier) == (plain.widths, plain.strides, 2, None)


def test_identity_start_is_the_plain_network_in_eval_mode():
    torch.manual_seed(0)
    plain = settle(tiny())
    tdaf = TDAF(copy.deepcopy(plain), flows=3, anar=5, anar_width=64, gate_init="identity", eta=0.5).eval()
    x = torch.randn(2, 3, 50, 41)
    for ours, theirs in zip(tdaf(x), plain.eval()(x), strict=True):
        assert_near(ours, theirs, 1e-6)


@pytest.mark.parametrize("norm", ["mfbn", "shared"])
def test_multi_scale_sees_every_flow(norm):
    torch.manual_seed(0)
    plain = tiny(last=96).double()
    network = MultiScale(copy.deepcopy(plain), flows=3, norm=norm).double()
    x = torch.randn(2, 3, 43, 37, dtype=torch.float64)
    h, pooled = plain.stages, []
    for n in (1, 2, 3):
        stages = copy.deepcopy(h) if norm == "mfbn" else h
        value = x
        for axis in (2, 3) * (3 - n):
            value = shrink_axis(value, axis, "area")
        for number in range(1, 4 - (3 - n) + 1):
            value = stages[number - 1](value)
        pooled.append(value.mean((2, 3)))
    maps = network(x)
    assert network.widths == [32, 64, 32, 96 + 32 + 64]
    assert maps[-1].shape[1] == 192 and [m.shape[1] for m in maps[:3]] == [32, 64, 32]
    assert_near(maps[-1].mean((2, 3)), torch.cat(pooled[::-1], 1))
    assert list(MultiScale(plain, flows=1).state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flows": 9}, "flows=9: this backbone has 4 stages, so flows must be between 1 and 4"),
        ({"flows": 0}, "between 1 and 4"),
        ({"flows": 2.5}, "flows=2.5"),
        ({"anar": 4}, "anar=4: must be one of 2, 3, 5, 7"),
        ({"anar": 4, "flows": 1}, "anar=4"),
        ({"eta": 2}, "eta=2: must be between 0 and 1"),
        ({"eta": "half"}, "eta=half"),
        ({"gated": [4]}, r"gated=\[4\]: .* between 1 and 3"),
        ({"gated": [0]}, "between 1 and 3"),
        ({"gated": "some"}, "gated=some"),
        ({"downsample": "cubic"}, "downsample=cubic: must be one of area, bilinear, stride"),
        ({"norm": "batch"}, "norm=batch: must be one of mfbn, shared"),
        ({"gate_init": "zero"}, "gate_init=zero: must be one of kaiming, identity"),
        ({"gate_init": "identity", "eta": 1}, "0 < eta < 1; eta is 1"),
        ({"anar_width": 100}, "anar_width=100: must be null or a positive multiple of 32"),
    ],
)
def test_wrong_settings_say_so_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        TDAF(tiny(), **settings)
    assert "\n" not in str(caught.value)
