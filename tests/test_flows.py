"""TDAF against a literal transcription of Eqs. 1-5, and what else it promises: the gate's gradients, hooks, masks."""

import copy
import pickle

import pytest
import torch
from literal import assert_near, literal, loss_of, shrink_axis
from tiny import Residual, settle, tiny
from torch import Tensor, nn

from tdaf.errors import UserError
from tdaf.model.backbones.resnet import resnet
from tdaf.model.backbones.vgg import vgg
from tdaf.model.flows import TDAF, MultiScale, halve
from tdaf.model.fold import fold
from tdaf.model.gated import relu_gate
from tdaf.model.maps import attention_maps
from tdaf.model.staged import Staged

SIZES = {2: (43, 37), 3: (17, 35, 30)}

CASES = [(dims, flows, "area", "all", 0.5, "mfbn", 3) for dims in (2, 3) for flows in (1, 2, 3, 4)]
CASES += [(2, 3, how, "all", 0.5, "mfbn", 3) for how in ("bilinear", "stride")]
CASES += [(3, 3, how, "all", 0.5, "mfbn", 3) for how in ("bilinear", "stride")]
CASES += [(2, 4, "area", gated, 0.5, "mfbn", 3) for gated in ([1], [2, 3], [3], [])]
CASES += [(2, 3, "area", "all", eta, "mfbn", 3) for eta in (0.0, 1.0)]
CASES += [(dims, 3, "area", "all", 0.5, "shared", 3) for dims in (2, 3)]
CASES += [(2, 3, "area", "all", 0.5, "mfbn", anar) for anar in (2, 5, 7)]
CASES = [(*case, {}) for case in CASES]
DESIGNS = [{"upsample": "resize"}, {"mask": "channel"}, {"learn_eta": True}, {"detach": True}]
CASES += [(2, 3, "area", "all", 0.3, "mfbn", 5, design) for design in DESIGNS]
CASES += [(2, 3, "area", [1, 2], 0.3, norm, 3, {"preactivation": True}) for norm in ("mfbn", "shared")]
CASES += [(2, 4, "area", "all", 0.3, "mfbn", 3, {"deeper": deeper}) for deeper in (1, 3)]
CASES += [(2, 2, "area", [2, 4], 0.5, "shared", 3, {"deeper": 1})]
CASES += [(3, 3, "area", [1], 0.5, "mfbn", 3, {"deeper": 1, "preactivation": True, "mask": "channel"})]
CASES += [(3, 2, "area", "all", 0.5, "mfbn", 3, {key: value for design in DESIGNS for key, value in design.items()})]


@pytest.mark.parametrize(("dims", "flows", "how", "gated", "eta", "norm", "anar", "design"), CASES)
def test_equals_the_equations(dims, flows, how, gated, eta, norm, anar, design):
    plain = tiny(dims).double()
    settings = dict(flows=flows, eta=eta, downsample=how, gated=gated, norm=norm, anar=anar, anar_width=32, **design)
    tdaf = TDAF(copy.deepcopy(plain), **settings).double()
    x = torch.randn(3, 3, *SIZES[dims], dtype=torch.float64)
    deeper = design.get("deeper", 0)
    stages = [1, 2, 3, 4][: 4 if deeper else 3] if gated == "all" else gated
    own = {key: design[key] for key in ("detach", "preactivation", "deeper") if key in design}
    expected, masks, used = literal(plain, tdaf, x, flows, how, stages, eta, norm == "mfbn", **own)
    depths = {n: min(4, 4 - (flows - n) + deeper) for n in range(1, flows + 1)}
    assert len(masks) == sum(1 for n in range(2, flows + 1) for s in stages if s <= depths[n - 1])
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
        ours = [(f"{name}.{key}", v) for name in ("stages", "gates") for key, v in modules[name].named_buffers()]
        assert len(ours) >= 3
        for key, value in ours:
            assert_near(value.double(), theirs[key].double())
    for which, module in enumerate((tdaf.stages, tdaf.gates)):
        for name, parameter in module.named_parameters():
            (ours,) = torch.autograd.grad(loss_of(maps), parameter, retain_graph=True)
            # A shared weight's gradient is the sum of what each flow's copy of it gets.
            copies = [used[n][which].get_parameter(name) for n in (range(1, flows + 1) if norm == "mfbn" else [1])]
            found = torch.autograd.grad(loss_of(expected), copies, retain_graph=True, allow_unused=True)
            assert_near(ours, sum(grad for grad in found if grad is not None))


def test_float32_and_eval_mode_equal_the_equations():
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


def test_one_flow_has_the_plain_networks_names():
    plain = tiny()
    tdaf = TDAF(copy.deepcopy(plain), flows=1)
    assert list(tdaf.state_dict()) == list(plain.state_dict())
    assert (tdaf.widths, tdaf.strides, tdaf.dims, tdaf.classifier) == (plain.widths, plain.strides, 2, None)


def test_identity_start_is_the_plain_network_in_eval_mode():
    plain = settle(tiny())
    tdaf = TDAF(copy.deepcopy(plain), flows=3, anar=5, anar_width=64, gate_init="identity", eta=0.5).eval()
    x = torch.randn(2, 3, 50, 41)
    for ours, theirs in zip(tdaf(x), plain.eval()(x), strict=True):
        assert_near(ours, theirs, 1e-6)


@pytest.mark.parametrize("norm", ["mfbn", "shared"])
def test_multi_scale_sees_every_flow(norm):
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
        ({"anar": 4}, "anar=4: must be one of 2, 3, 5, 7"),
        ({"eta": 2}, "eta=2: must be between 0 and 1"),
        ({"gated": [4]}, r"gated=\[4\]: .* between 1 and 3"),
        ({"downsample": "cubic"}, "downsample=cubic: must be one of area, bilinear, stride"),
        ({"gate_init": "identity", "eta": 1}, "0 < eta < 1; eta is 1"),
        ({"preactivation": True}, "preactivation=true needs stages that end in an nn.ReLU"),
        ({"deeper": 3}, "deeper=3: must be between 0 and 2 with flows=3"),
        ({"deeper": 1, "gated": [5]}, r"gated=\[5\]: .* between 1 and 4; no other has a gate"),
        ({"anar_width": 100}, "anar_width=100: must be null or a positive multiple of 32"),
    ],
)
def test_wrong_settings_say_so_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        TDAF(tiny(), **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("inplace", "masks"), [(False, 1), (True, 1), (True, 5)])
def test_fused_gate_gradients(inplace, masks):
    h = torch.randn(2, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    m = torch.rand(2, masks, 4, 3, dtype=torch.float64).mul(1.4).add(0.05).requires_grad_()
    assert torch.autograd.gradcheck(lambda h, m: relu_gate(h * 1, m, inplace), (h, m))
    weight = torch.randn_like(h)
    ours = torch.autograd.grad((relu_gate(h * 1, m, inplace) * weight).sum(), (h, m))
    theirs = torch.autograd.grad((torch.relu(h) * m * weight).sum(), (h, m))
    for a, b in zip(ours, theirs, strict=True):
        assert_near(a, b, 1e-12)
    with torch.no_grad():
        assert torch.equal(relu_gate(h.clone(), m, inplace), torch.relu(h) * m)


def test_fused_gate_where_the_mask_is_zero():
    h = torch.randn(1, 4, 1, 3, dtype=torch.float64, requires_grad=True)
    logits = torch.tensor([-2000.0, 0.3, 900.0], dtype=torch.float64).reshape(1, 1, 1, 3).requires_grad_()
    ours = torch.autograd.grad(relu_gate(h * 1, torch.sigmoid(logits)).square().sum(), (h, logits))
    theirs = torch.autograd.grad((torch.relu(h) * torch.sigmoid(logits)).square().sum(), (h, logits))
    assert torch.sigmoid(logits)[0, 0, 0, 0] == 0
    for a, b in zip(ours, theirs, strict=True):
        assert torch.isfinite(a).all()
        assert_near(a, b, 1e-12)


def test_fused_gate_sums_half_precision_in_float32():
    h = torch.rand(1, 4096, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    m = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    (grad,) = torch.autograd.grad(relu_gate(h * 1, m).sum(), m)
    assert grad.dtype == torch.bfloat16
    assert abs(grad.item() - h.float().sum().item()) <= 2**-8 * h.float().sum().item()


def test_channels_last_stays():
    network = TDAF(tiny(), flows=3, anar=7, anar_width=64).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 48, 48).to(memory_format=torch.channels_last)
    for mode in (True, False):
        for m in network.train(mode)(x):
            assert m.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("flows", "momentum"), [(1, 0.1), (3, 0.1), (3, None)])
@pytest.mark.parametrize("kind", [TDAF, MultiScale])
def test_rematerialise_changes_nothing(kind, flows, momentum):
    network = kind(tiny(), flows=flows)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    again = copy.deepcopy(network)
    again.rematerialise = True
    x = torch.randn(2, 3, 40, 33)
    for _ in range(2):
        for net in (network, again):
            loss_of(net(x)).backward()
    for (name, p), q in zip(network.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    for (name, p), q in zip(network.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(p, q), name
    assert again.stages[0].norm.num_batches_tracked == 2


@pytest.mark.parametrize(("build", "rematerialise"), [("tiny", False), ("tiny", True), ("own", False)])
def test_compiles_in_one_graph(build, rematerialise):
    network = TDAF(BODIES[build][0](), flows=2, anar_width=64, rematerialise=rematerialise)
    again = copy.deepcopy(network)
    x = torch.randn(2, 3, 33, 40)
    eager, compiled = network(x), torch.compile(again, backend="aot_eager", fullgraph=True)(x)
    for ours, theirs in zip(compiled, eager, strict=True):
        assert_near(ours, theirs)
    for maps in (eager, compiled):
        loss_of(maps).backward()
    for (name, p), q in zip(network.named_parameters(), again.parameters(), strict=True):
        assert p.grad is not None, name
        assert_near(q.grad, p.grad, 1e-5)
    for p, q in zip(network.buffers(), again.buffers(), strict=True):
        assert_near(q.double(), p.double(), 1e-6)


def own() -> Staged:
    """Stages of a class of their own alone."""
    stages = [Residual(3, 32, 2), Residual(32, 64, 2), Residual(64, 32, 2)]
    return Staged(stages, [32, 64, 32], [2, 4, 8])


BODIES = {
    "own": (own, 40),
    "tiny": (tiny, 40),
    "resnet": (lambda: resnet(18, width=8), 64),
    "vgg": (lambda: vgg(11), 32),
}


@pytest.mark.parametrize("norm", ["mfbn", "shared"])
@pytest.mark.parametrize("build", BODIES)
def test_hooks_of_a_stage_fire_in_each_flows_call(build: str, norm: str) -> None:
    """On the map that goes on: the gated one, whether or not the stage ends in a ReLU or is a Sequential."""
    staged, size = BODIES[build][0](), BODIES[build][1]
    network = TDAF(staged, flows=3, norm=norm)
    before: list[tuple[int, Tensor]] = []
    after: list[tuple[int, Tensor, Tensor]] = []
    backward: list[int] = []
    for number, stage in enumerate(network.stages):
        stage.register_forward_pre_hook(lambda _, args, n=number: before.append((n, *args)))
        stage.register_forward_hook(lambda _, args, output, n=number: after.append((n, *args, output)))
        stage.register_full_backward_hook(lambda _, inputs, outputs, n=number: backward.append(n))
    x = torch.rand(2, 3, size, size, requires_grad=True)
    maps = network(x)
    last = list(range(len(maps)))
    calls = last if norm == "mfbn" else [*last[:-2], *last[:-1], *last]
    assert [n for n, *_ in before] == [n for n, *_ in after] == calls
    loss_of(maps).backward()
    assert sorted(backward) == sorted(calls)
    for (n, given), (_, same, output), expected in zip(before[-len(maps) :], after[-len(maps) :], maps, strict=True):
        assert torch.equal(output, expected), "what a hook sees is what goes on"
        assert torch.equal(given, same) and (n == 0 or torch.equal(given, maps[n - 1]))


def test_a_hook_may_change_a_gated_map_and_stages_stay_what_they_were() -> None:
    staged = tiny()
    stages = list(staged.stages)
    network = TDAF(staged, flows=3)
    assert network.stages is staged.stages and all(a is b for a, b in zip(stages, network.stages, strict=True))
    assert isinstance(stages[0], nn.Sequential) and isinstance(stages[3], type(tiny().stages[3]))
    network.stages[1].register_forward_hook(lambda stage, args, output: output * 0)
    assert not network(torch.rand(2, 3, 40, 40))[1].any()
    network, x = settle(TDAF(own(), flows=3)).eval(), torch.rand(1, 3, 40, 40)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(x)[-1], network(x)[-1]) and isinstance(twin.stages[0], Residual)
    folded = fold(network)
    assert isinstance(folded.stages[0].norm, nn.Identity)
    torch.testing.assert_close(folded(x)[-1], network(x)[-1])


@pytest.mark.parametrize("norm", ["mfbn", "shared"])
def test_attention_maps_are_the_masks(norm):
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
