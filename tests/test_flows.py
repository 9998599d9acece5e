"""TDAF against a literal transcription of Eqs. 1-5, and what else it promises."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny import settle, tiny
from torch import Tensor, nn

from tdaf.errors import UserError
from tdaf.model.flows import TDAF, MultiScale
from tdaf.model.gate import relu_gate
from tdaf.model.maps import attention_maps
from tdaf.model.pyramid import halve

torch.set_num_threads(1)
SIZES = {2: (43, 37), 3: (17, 35, 30)}


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


def literal(plain: nn.Module, tdaf: TDAF, x: Tensor, n_flows: int, how: str, gated: list[int], eta: float, mfbn: bool):
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
        for number in range(1, n_stages - (n_flows - n) + 1):  # Eq. 1
            value = used[n][0][number - 1](value)
            if (n - 1, number) in maps and number in gated:  # Eqs. 3 and 5
                masks[n, number] = used[n][1][str(number)](maps[n - 1, number], value.shape[2:])
                value = value * (masks[n, number] + eta)
            maps[n, number] = value
    return [maps[n_flows, number] for number in range(1, n_stages + 1)], masks, used


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float = 1e-6) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * max(1.0, theirs.abs().max())


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
        theirs = {**{f"stages.{k}": v for k, v in used[n][0].named_buffers()}}
        theirs |= {f"gates.{k}": v for k, v in used[n][1].named_buffers()}
        checked = 0
        for name in ("stages", "gates"):
            for key, value in modules[name].named_buffers():
                assert_near(value.double(), theirs[f"{name}.{key}"].double())
                checked += 1
        assert checked >= 3
    for (ours, weight), theirs in zip(tdaf.stages.named_parameters(), grads(maps, tdaf.stages), strict=True):
        other = sum_over_flows(expected, used, "stages", ours, norm == "mfbn")
        assert_near(theirs, other), weight


def grads(maps: list[Tensor], module: nn.Module) -> list[Tensor]:
    loss = sum(m.square().mean() for m in maps)
    return list(torch.autograd.grad(loss, list(module.parameters()), retain_graph=True))


def sum_over_flows(maps: list[Tensor], used: dict, kind: str, name: str, mfbn: bool) -> Tensor:
    """A shared weight's gradient is the sum of what each flow's copy gets."""
    loss = sum(m.square().mean() for m in maps)
    flows = used.values() if mfbn else [used[1]]
    copies = [stages.get_parameter(name) for stages, _ in flows]
    found = torch.autograd.grad(loss, copies, retain_graph=True, allow_unused=True)
    return sum(g for g in found if g is not None)


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


@pytest.mark.parametrize("inplace", [False, True])
def test_fused_gate_gradients(inplace):
    torch.manual_seed(0)
    h = torch.randn(2, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    m = torch.rand(2, 1, 4, 3, dtype=torch.float64).mul(1.4).add(0.05).requires_grad_()
    assert torch.autograd.gradcheck(lambda h, m: relu_gate(h * 1, m, inplace), (h, m))
    weight = torch.randn_like(h)
    ours = torch.autograd.grad((relu_gate(h * 1, m, inplace) * weight).sum(), (h, m))
    theirs = torch.autograd.grad((torch.relu(h) * m * weight).sum(), (h, m))
    for a, b in zip(ours, theirs, strict=True):
        assert_near(a, b, 1e-12)
    with torch.no_grad():
        assert torch.equal(relu_gate(h.clone(), m, inplace), torch.relu(h) * m)


def test_fused_gate_where_the_mask_is_zero():
    torch.manual_seed(0)
    h = torch.randn(1, 4, 1, 3, dtype=torch.float64, requires_grad=True)
    logits = torch.tensor([-2000.0, 0.3, 900.0], dtype=torch.float64).reshape(1, 1, 1, 3).requires_grad_()
    ours = torch.autograd.grad(relu_gate(h * 1, torch.sigmoid(logits)).square().sum(), (h, logits))
    theirs = torch.autograd.grad((torch.relu(h) * torch.sigmoid(logits)).square().sum(), (h, logits))
    assert torch.sigmoid(logits)[0, 0, 0, 0] == 0
    for a, b in zip(ours, theirs, strict=True):
        assert torch.isfinite(a).all()
        assert_near(a, b, 1e-12)


def test_fused_gate_sums_half_precision_in_float32():
    torch.manual_seed(0)
    h = torch.rand(1, 4096, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    m = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    (grad,) = torch.autograd.grad(relu_gate(h * 1, m).sum(), m)
    assert grad.dtype == torch.bfloat16
    assert abs(grad.item() - h.float().sum().item()) <= 2**-8 * h.float().sum().item()


@pytest.mark.parametrize(("flows", "momentum"), [(1, 0.1), (3, 0.1), (3, None)])
def test_rematerialise_changes_nothing(flows, momentum):
    torch.manual_seed(0)
    network = TDAF(tiny(), flows=flows, anar=5, anar_width=64)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    again = copy.deepcopy(network)
    again.rematerialise = True
    x = torch.randn(2, 3, 40, 33)
    for _ in range(2):
        for net in (network, again):
            sum(m.square().mean() for m in net(x)).backward()
    for (name, p), q in zip(network.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    for (name, p), q in zip(network.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(p, q[1]), name
    assert again.stages[0].norm.num_batches_tracked == 2


@pytest.mark.parametrize("rematerialise", [False, True])
def test_compiles_in_one_graph(rematerialise):
    torch.manual_seed(0)
    network = TDAF(tiny(), flows=3, anar_width=64, rematerialise=rematerialise)
    again = copy.deepcopy(network)
    x = torch.randn(2, 3, 33, 40)
    eager, compiled = network(x), torch.compile(again, backend="aot_eager", fullgraph=True)(x)
    for ours, theirs in zip(compiled, eager, strict=True):
        assert_near(ours, theirs)
    for maps in (eager, compiled):
        sum(m.square().mean() for m in maps).backward()
    for (name, p), q in zip(network.named_parameters(), again.parameters(), strict=True):
        assert_near(q.grad, p.grad, 1e-5), name
    for p, q in zip(network.buffers(), again.buffers(), strict=True):
        assert_near(q.double(), p.double(), 1e-6)


def test_channels_last_stays():
    network = TDAF(tiny(), flows=3, anar=7, anar_width=64).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 48, 48).to(memory_format=torch.channels_last)
    for mode in (True, False):
        for m in network.train(mode)(x):
            assert m.is_contiguous(memory_format=torch.channels_last)


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


@pytest.mark.parametrize("norm", ["mfbn", "shared"])
def test_attention_maps_are_the_masks(norm):
    torch.manual_seed(0)
    plain = tiny()
    tdaf = TDAF(copy.deepcopy(plain), flows=3, gated=[1, 3], anar_width=64, norm=norm).train()
    network = nn.Sequential(tdaf)
    before = copy.deepcopy(tdaf.state_dict())
    x = torch.randn(2, 3, 43, 37)
    found = attention_maps(network, x)
    for key, value in tdaf.state_dict().items():
        assert torch.equal(value, before[key])
    assert tdaf.training and tdaf.stages[0].training
    _, masks, _ = literal(plain.eval(), tdaf.eval(), x, 3, "area", [1, 3], 0.5, norm == "mfbn")
    assert list(found) == sorted(masks) == [(2, 1), (3, 1), (3, 3)]
    for key, mask in masks.items():
        assert mask.shape[1] == 1
        assert_near(found[key], mask, 1e-5)
    assert attention_maps(tiny(), x) == {}
    with pytest.raises(ValueError, match="has 2"):
        attention_maps(nn.Sequential(tdaf, TDAF(tiny())), x)


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
