"""ANAR against Table 1 written out with functional calls, and its published sizes. And designs of the gates that are
not the paper's: off they change nothing, on what they say; folded, computed again, saved."""

import copy
import pickle

import pytest
import torch
from literal import assert_near, loss_of
from tiny import settle, tiny
from torch import Tensor, nn
from torch.nn import functional as F

from tdaf.errors import UserError
from tdaf.model.anar import ANAR
from tdaf.model.flows import TDAF
from tdaf.model.fold import fold
from tdaf.model.maps import attention_maps, mask_eta


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# Table 1 over the three gated stages of ResNet-50 with c = 512; Tables 4 and 6 give the totals to three digits.
@pytest.mark.parametrize(
    ("layers", "dims", "total"), [(3, 2, 164_371), (5, 2, 587_411), (7, 2, 754_067), (5, 3, 1_398_419)]
)
def test_published_totals(layers, dims, total):
    assert sum(count(ANAR(width, layers, dims=dims)) for width in (256, 512, 1024)) == total


def test_width_null_is_the_stage_width():
    assert count(ANAR(256, 5, width=None)) == count(ANAR(256, 5, width=256)) != count(ANAR(256, 5))


class Table1:
    """Table 1 with functional calls only; parameters are taken in the order in which the table uses them."""

    def __init__(self, module: ANAR, c: int, depthwise: bool, resized: bool = False) -> None:
        self.module, self.c, self.depthwise, self.resized = module, c, depthwise, resized
        self.conv = F.conv2d if module.dims == 2 else F.conv3d
        self.deconv = F.conv_transpose2d if module.dims == 2 else F.conv_transpose3d

    def norm(self, layer: nn.Module, x: Tensor) -> Tensor:
        axes = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        mean, var = x.mean(axes, keepdim=True), x.var(axes, unbiased=False, keepdim=True)
        return (x - mean) / torch.sqrt(var + 1e-5) * layer.weight.reshape(shape) + layer.bias.reshape(shape)

    def unit(self, block: nn.Module, x: Tensor, kernel: int) -> Tensor:
        """conv or deconv without bias, then batch norm; depthwise: the same in two steps with ReLU between."""
        convs = [m for m in block.modules() if hasattr(m, "kernel_size")]
        norms = [m for m in block.modules() if hasattr(m, "running_mean")]
        assert all(m.bias is None for m in convs)
        split = self.depthwise and kernel > 1
        assert len(convs) == len(norms) == (2 if split else 1)
        assert set(convs[0].kernel_size) == {3 if kernel == 4 and self.resized else kernel}
        groups = x.shape[1] if split else 1
        if kernel == 4 and self.resized:
            x = self.conv(self.resize(x, [2 * s for s in x.shape[2:]]), convs[0].weight, padding=1, groups=groups)
        elif kernel == 4:
            x = self.deconv(x, convs[0].weight, stride=2, padding=1, groups=groups)
        elif kernel == 3:
            x = self.conv(x, convs[0].weight, stride=2, padding=1, groups=groups)
        else:
            x = self.conv(x, convs[0].weight)
        x = self.norm(norms[0], x)
        if split:
            x = self.norm(norms[1], self.conv(torch.relu(x), convs[1].weight))
        return x

    def resize(self, x: Tensor, size) -> Tensor:
        return F.interpolate(x, size=tuple(size), mode="bilinear" if x.dim() == 4 else "trilinear", align_corners=False)

    def __call__(self, x: Tensor, size) -> Tensor:
        g, c, relu = self.module, self.c, torch.relu
        layers = {(0, False): 2, (0, True): 3, (1, True): 5, (2, True): 7}[len(g.down), g.last is not None]
        a = relu(self.unit(g.trans, x, 1))
        assert a.shape[1] == (c // 8 if layers <= 3 else c // 4)
        if layers == 2:  # the table's order: up-sample, then project
            up = self.resize(a, [2 * s for s in a.shape[2:]])
        elif layers == 3:
            up = relu(self.unit(g.last, a, 4))
        elif layers == 5:
            b = relu(self.unit(g.down[0], a, 3))
            up = self.resize(self.unit(g.up[0], b, 4), a.shape[2:]) + self.unit(g.skip[0], a, 1)
            assert (b.shape[1], up.shape[1]) == (c // 8, c // 16)
            up = relu(self.unit(g.last, relu(up), 4))
        else:
            b = relu(self.unit(g.down[0], a, 3))
            d = relu(self.unit(g.down[1], b, 3))
            up = relu(self.resize(self.unit(g.up[0], d, 4), b.shape[2:]) + self.unit(g.skip[0], b, 1))
            assert (b.shape[1], d.shape[1], up.shape[1]) == (c // 8, c // 8, c // 16)
            up = relu(self.resize(self.unit(g.up[1], up, 4), a.shape[2:]) + self.unit(g.skip[1], a, 1))
            assert up.shape[1] == c // 16
            up = relu(self.unit(g.last, up, 4))
        assert layers == 2 or up.shape[1] == c // 32
        return self.resize(torch.sigmoid(self.conv(up, g.mask.weight, g.mask.bias)), size)


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("layers", [2, 3, 5, 7])
@pytest.mark.parametrize("upsample", ["deconv", "resize"])
def test_equals_table_1(layers, dims, depthwise, upsample):
    anar = ANAR(48, layers, 64, dims, depthwise, upsample=upsample).double()
    for parameter in anar.parameters():
        nn.init.uniform_(parameter, -0.5, 0.8)
    for size, asked in (((5, 7, 6), (9, 13, 12)), ((4, 8, 4), (8, 16, 8)), ((1, 1, 3), (2, 1, 5))):
        x = torch.randn(3, 48, *size[:dims], dtype=torch.float64)
        ours = anar(x, asked[:dims])
        theirs = Table1(anar, 64, depthwise, upsample == "resize")(x, asked[:dims])
        assert ours.shape == (3, 1, *asked[:dims])
        assert (ours - theirs).abs().max() < 1e-9
        assert ours.min() > 0 and ours.max() < 1 and ours.std() > 1e-3


@pytest.mark.parametrize("layers", [3, 5, 7])
def test_only_a_deconvolution_lays_a_checkerboard_over_an_even_map(layers):
    even = torch.randn(1, 64, 1, 1).expand(1, 64, 24, 24)
    for upsample, checkered in (("deconv", True), ("resize", False)):
        inside = ANAR(64, layers, 64, upsample=upsample).eval()(even, (48, 48))[..., 16:-16, 16:-16]
        assert (inside.std() > 1e-3) == checkered and (checkered or inside.std() < 1e-6)


def test_a_mask_a_channel():
    anar = ANAR(64, 3, 64, mask="channel", init="identity", eta=0.25)
    assert torch.allclose(anar(torch.randn(2, 64, 6, 6), (12, 12)), torch.full((2, 64, 12, 12), 0.75))
    assert count(anar) - count(ANAR(64, 3, 64)) == 63 * 3


@pytest.mark.parametrize("eta", [0.2, 0.5, 0.9])
def test_identity_start_makes_gate_plus_eta_one(eta):
    mask = ANAR(64, 5, 64, init="identity", eta=eta)(torch.randn(2, 64, 6, 6), (12, 12))
    assert torch.allclose(mask + eta, torch.ones_like(mask), atol=1e-6)


@pytest.mark.parametrize("layers", [2, 3, 5, 7])
def test_kaiming_start_leaves_the_sigmoid_room(layers):
    mask = ANAR(256, layers)(torch.randn(4, 256, 14, 14).relu(), (28, 28))
    assert ((mask > 0.02) & (mask < 0.98)).float().mean() > 0.9
    assert mask.std() > 0.03


def test_wrong_settings():
    with pytest.raises(UserError, match="anar=6: must be one of 2, 3, 5, 7"):
        ANAR(64, 6)
    with pytest.raises(UserError, match="anar_width=null: a stage has 40 channels"):
        ANAR(40, 3, width=None)
    with pytest.raises(UserError, match="anar_width=16"):
        ANAR(40, 3, width=16)


def test_the_defaults_are_the_papers_and_each_design_is_a_switch():
    """Nothing but what a design says changes: names, first weights and, where it starts so, the maps."""
    x = torch.randn(2, 3, 40, 40)

    def built(**design):
        torch.manual_seed(0)
        network = TDAF(tiny(), flows=3, anar=5, anar_width=64, **design)
        return network.state_dict(), network(x)[-1]

    state, maps = built()
    same = built(upsample="deconv", mask="one", learn_eta=False, detach=False, preactivation=False, deeper=0)
    assert all(torch.equal(state[key], same[0][key]) for key in state) and torch.equal(maps, same[1])
    detached, learnt = built(detach=True), built(learn_eta=True)
    assert detached[0].keys() == state.keys() and torch.equal(detached[1], maps)
    assert learnt[0].keys() - state.keys() == {f"gates.{stage}.logit" for stage in (1, 2, 3)}
    torch.testing.assert_close(learnt[1], maps)
    channel, resized = built(mask="channel")[0], built(upsample="resize")[0]
    assert channel["gates.2.mask.weight"].shape[0] == tiny().widths[1] and state["gates.2.mask.weight"].shape[0] == 1
    assert resized["gates.1.last.1.weight"].shape[2:] == (3, 3) and state["gates.1.last.0.weight"].shape[2:] == (4, 4)
    deeper = built(deeper=1)[0]
    assert {key.split(".")[1] for key in deeper.keys() - state.keys() if key.startswith("gates.")} == {"4"}


@pytest.mark.parametrize(
    "design", [{"preactivation": True, "gated": [1, 2]}, {"deeper": 2}, {"deeper": 1, "norm": "shared"}]
)
def test_a_design_folds_is_computed_again_saved_and_starts_as_the_identity(design):
    plain = settle(tiny())
    network = TDAF(copy.deepcopy(plain), flows=3, anar_width=32, gate_init="identity", **design)
    x = torch.randn(2, 3, 40, 33)
    if "norm" not in design:  # statistics of one's own are the plain network's only as long as they are copies
        for ours, theirs in zip(network.eval()(x), plain.eval()(x), strict=True):
            assert_near(ours, theirs)
    again = TDAF(tiny(), flows=3, anar_width=32, rematerialise=True, **design)
    nn.init.normal_(network.gates["2"].mask.weight)
    again.load_state_dict(network.state_dict())
    for net in (network.train(), again):
        loss_of(net(x)).backward()
    for (name, p), q in zip(network.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(p.grad, q[1].grad), name
    for ours, theirs in zip(fold(again)(x), pickle.loads(pickle.dumps(again)).eval()(x), strict=True):
        assert_near(ours, theirs, 1e-5)
    depths = [min(4, 1 + n + design.get("deeper", 0)) for n in (1, 2)]  # S(1) and S(2), whose maps have a gate
    gated = design.get("gated", [1, 2, 3, 4])
    assert {*attention_maps(again, x)} == {
        (n, s) for n, seen in zip((2, 3), depths, strict=True) for s in gated if s <= seen
    }


def test_a_learnt_eta_is_one_number_a_stage_shared_by_all_flows():
    network = TDAF(tiny(), flows=4, anar=3, anar_width=32, learn_eta=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    network(torch.randn(2, 3, 48, 48))[-1].square().mean().backward()
    optimizer.step()
    numbers = [gate.logit.item() for gate in network.gates.values()]
    assert len(set(numbers)) == 3 and 0.0 not in numbers
    for flow in network.earlier:
        assert all(gate.logit is network.gates[key].logit for key, gate in flow["gates"].items())
    assert 0 < mask_eta(network) < 1 and mask_eta(network) != 0.5
