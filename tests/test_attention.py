"""What holds for every attention mechanism in a backbone and under TDAF; SE's and CBAM's equations; and how one is
chosen. The other mechanisms' equations have files of their own."""

import copy
import subprocess
import sys

import pytest
import torch
from mechanisms import NAMES, complete, count, drawn, mechanism
from torch import Tensor, nn
from torch.nn import functional as F

from tdaf.errors import UserError
from tdaf.model.attention import is_placement
from tdaf.model.attention.se_cbam import CBAM, squeeze_excitation
from tdaf.model.backbones.mobilenet import mobilenet
from tdaf.model.backbones.resnet import resnet
from tdaf.model.backbones.vgg import vgg
from tdaf.model.flows import TDAF
from tdaf.model.fold import fold
from tdaf.model.pretrained import load
from tdaf.model.staged import Staged, initialise
from tests.tiny import settle

MECHANISMS = [name for name in NAMES if name != "none"]
IMAGES = ("aa", "sasa", "abn")
DEPTHS = {name: 18 if name == "resatt" else 50 for name in MECHANISMS}  # the larger one has every kind of place
NETWORKS = [(name, depth, 2) for name, depth in DEPTHS.items()] + [("sasa", 18, 2), ("tdam", 18, 2)]
NETWORKS += [(name, 18, 3) for name in MECHANISMS if name not in (*IMAGES, "resatt")]
# what a mechanism adds to the weights of a plain network, which all of these keep
ADDED = {"se": ".attention.", "cbam": ".attention.", "tdam": ".top_down.", "abn": ".attention."}
ADDED |= {name: ".after." for name in ("nonlocal", "a2", "cgnl")}
# a batch norm of each that folding takes away, if torch.fx can follow the mechanism
FOLDED = {"nonlocal": "stages.2.layer3.0.after.norm", "a2": "stages.2.layer3.0.after.norm"}
FOLDED |= {name: "stages.2.layer3.4.bn3" for name in ("se", "cgnl", "abn")} | {
    "cbam": "stages.0.layer1.0.attention.norm"
}
FOLDED |= {"aa": "stages.1.layer2.0.bn1", "sasa": "stages.1.layer2.0.bn1", "tdam": "stages.2.layer3.0.bn2"}


def attended(name: str, depth: int = 18, dims: int = 2) -> Staged:
    staged = resnet(depth, width=8, attention=mechanism(name), dims=dims)
    return complete(staged, 4) if name == "abn" else staged


def tdaf(name: str, depth: int, flows: int, dims: int = 2) -> TDAF:
    torch.manual_seed(0)
    return TDAF(attended(name, depth, dims), flows=flows)


@pytest.mark.parametrize(("name", "depth", "dims"), NETWORKS)
def test_under_tdaf_every_flow_trains_on_odd_sizes(name: str, depth: int, dims: int) -> None:
    network = tdaf(name, depth, flows=3, dims=dims)
    x = torch.rand(2, 3, *[6] * (dims - 2), 65, 71)
    before = {n: b.clone() for n, b in network.named_buffers() if n.endswith("running_mean")}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):  # in the first step of some only a last norm's weight learns, which starts at 0
        optimizer.zero_grad()
        maps = network(x)
        maps[-1].square().mean().backward()
        optimizer.step()
    assert [tuple(m.shape[-2:]) for m in maps] == [(17, 18), (9, 9), (5, 5), (3, 3)]
    silent = [n for n, p in network.named_parameters() if not p.grad.isfinite().all() or not p.grad.any()]
    assert silent == []
    after = dict(network.named_buffers())
    assert any(n.startswith("earlier.1.") for n in before)
    assert [n for n in before if torch.equal(before[n], after[n])] == []  # every flow's own statistics


@torch.no_grad()
@pytest.mark.parametrize("name", MECHANISMS)
def test_copies_states_formats_and_folding_give_the_same(name: str) -> None:
    network = settle(tdaf(name, DEPTHS[name], flows=2), size=64).eval()
    for parameter in (p for n, p in network.named_parameters() if ADDED.get(name, "?") in n):
        nn.init.normal_(parameter, 0.1, 0.3)  # none is the identity as it may start
    network, x = network.double(), torch.rand(1, 3, 45, 38).double()
    expected = network(x)[-1]
    other = tdaf(name, DEPTHS[name], flows=2).eval().double()
    assert not torch.allclose(other(x)[-1], expected)
    other.load_state_dict(network.state_dict())
    folded = fold(network)
    if name in FOLDED:
        assert isinstance(folded.get_submodule(FOLDED[name]), nn.Identity)
    for twin in (copy.deepcopy(network), other, folded):
        torch.testing.assert_close(twin(x)[-1], expected)
    last = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))[-1]
    torch.testing.assert_close(last, expected)


@pytest.mark.parametrize("name", ADDED)
def test_weights_of_the_plain_network_load(name: str) -> None:
    plain, ours = resnet(18, width=8), attended(name)
    report = load(ours, plain.state_dict())
    assert report.missing and all(ADDED[name] in key for key in report.missing)
    assert [key for key in ours.state_dict() if ADDED[name] not in key] == list(plain.state_dict())
    torch.testing.assert_close(ours.stages[3].layer4[0].conv1.weight, plain.stages[3].layer4[0].conv1.weight)


@torch.no_grad()
@pytest.mark.parametrize(("name", "dims"), [("nonlocal", 2), ("nonlocal", 3), ("a2", 2), ("cgnl", 2)])
def test_what_comes_after_a_block_starts_as_the_identity(name: str, dims: int) -> None:
    plain, ours = resnet(18, width=8, dims=dims), attended(name, dims=dims)
    load(ours, plain.state_dict())
    x = torch.rand(2, 3, *[9] * (dims - 2), 45, 38)
    for theirs, mine in zip(plain(x), ours(x), strict=True):
        torch.testing.assert_close(theirs, mine)


@pytest.mark.parametrize("name", MECHANISMS)
def test_backbones_without_a_mechanism_refuse_it(name: str) -> None:
    refused = [lambda: mobilenet(attention=mechanism(name))] if is_placement(mechanism(name)) else []
    if name != "abn":
        refused.append(lambda: vgg(attention=mechanism(name)))
    if name in IMAGES:
        refused.append(lambda: resnet(18, attention=mechanism(name), dims=3))
    if name in ("aa", "sasa"):
        refused.append(lambda: resnet(50, groups=32, width_per_group=4, attention=mechanism(name)))
    assert refused
    for build in refused:
        with torch.device("meta"), pytest.raises(UserError, match="attention") as caught:
            build()
        assert "\n" not in str(caught.value)


def test_a_mechanism_is_no_name() -> None:
    for build in (resnet, mobilenet, vgg):
        with torch.device("meta"):
            assert count(build(attention="none")) == count(build(attention=None)) == count(build())
            with pytest.raises(UserError, match="attention=se: give none, channels -> module"):
                build(attention="se")


def test_a_backbone_imports_no_mechanism() -> None:
    check = (
        "import sys, pkgutil, tdaf.model.attention as a, tdaf.model.backbones.mobilenet as m; m.mobilenet()\n"
        "assert 'torchvision' not in sys.modules\n"
        "import tdaf.model.backbones.resnet as r, tdaf.model.backbones.vgg as v; r.resnet(18); v.vgg(11)\n"
        "names = ['tdaf.model.attention.' + one.name for one in pkgutil.iter_modules(a.__path__)]\n"
        "assert len(names) > 4 and not sys.modules.keys() & set(names)"
    )
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


# SE and CBAM


@pytest.mark.parametrize(
    ("name", "features", "expected", "published"),
    [
        ("se", 2048, 28_088_024, 28.1e6),  # Hu et al. 2018, table of reduction ratios, r = 16
        ("cbam", 2048, 28_089_624, 28.09e6),  # Woo et al. 2018, Table 4
        ("se", 1024, 4_718_044, 4.7e6),  # Hu et al. 2018, Table 3: MobileNet
    ],
)
def test_published_parameter_counts(name: str, features: int, expected: int, published: float) -> None:
    with torch.device("meta"):
        build = resnet if features == 2048 else mobilenet
        total = count(build(attention=mechanism(name))) + count(nn.Linear(features, 1000))
    assert total == expected == pytest.approx(published, rel=0.005)


def se(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Hu et al. 2018, Eqs. 2-4, one sample and one channel at a time."""
    y = torch.empty_like(x)
    for b in range(len(x)):
        z = torch.stack([x[b, c].sum() / x[b, c].numel() for c in range(x.shape[1])])
        hidden = torch.clamp(state["fc1.weight"].flatten(1) @ z + state["fc1.bias"], min=0)
        s = 1 / (1 + torch.exp(-(state["fc2.weight"].flatten(1) @ hidden + state["fc2.bias"])))
        for c in range(x.shape[1]):
            y[b, c] = s[c] * x[b, c]
    return y


def cbam(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Woo et al. 2018, Eqs. 2 and 3, with the batch norm of the authors' code in evaluation."""
    first, second = (state[f"mlp.{i}.weight"].flatten(1) for i in (0, 2))
    masked = torch.empty_like(x)
    for b in range(len(x)):
        total = torch.zeros(x.shape[1])
        for pooled in (x[b].flatten(1).mean(1), x[b].flatten(1).max(1).values):
            total += second @ torch.clamp(first @ pooled + state["mlp.0.bias"], min=0) + state["mlp.2.bias"]
        for c in range(x.shape[1]):
            masked[b, c] = torch.sigmoid(total)[c] * x[b, c]
    both = torch.stack([masked.max(1).values, masked.mean(1)], dim=1)
    convolve = F.conv2d if x.ndim == 4 else F.conv3d
    spatial = convolve(both, state["spatial.weight"], padding=3)
    scale = state["norm.weight"] / (state["norm.running_var"] + 1e-5).sqrt()
    return masked * torch.sigmoid((spatial - state["norm.running_mean"]) * scale + state["norm.bias"])


@torch.no_grad()
@pytest.mark.parametrize("size", [(9, 6), (4, 5, 6)])
@pytest.mark.parametrize(("name", "literal"), [("se", se), ("cbam", cbam)])
def test_equations(name: str, literal, size: tuple[int, ...]) -> None:
    block, x = drawn(mechanism(name)(32), 32, len(size)), torch.randn(2, 32, *size)
    assert (block(x) / x).std() > 0.01
    torch.testing.assert_close(block(x), literal(x, block.state_dict()), rtol=1e-5, atol=1e-5)
    assert mechanism(name)(8)(torch.rand(2, 8, 4, 4)).shape == (2, 8, 4, 4)  # keeps one hidden channel


def test_cbam_starts_with_an_even_spatial_mask() -> None:
    """The authors' code starts that batch norm's weight at 0; the backbone's Kaiming start must not undo it."""
    x = torch.randn(2, 32, 5, 5)
    block = initialise(CBAM(32))
    channels = torch.sigmoid(block.mlp(x.mean((2, 3), keepdim=True)) + block.mlp(x.amax((2, 3), keepdim=True)))
    torch.testing.assert_close(block(x), x * channels / 2)
    weights = [m.norm.weight for m in attended("cbam").modules() if isinstance(m, CBAM)]
    assert len(weights) == 8 and not any(w.any() for w in weights)


@pytest.mark.parametrize("depth", [18, 50])
def test_a_module_ends_the_residual_branch(depth: int) -> None:
    """Before the sum with the shortcut (Hu et al. 2018, Fig. 3): one that gives 0 leaves the shortcut alone."""
    staged = resnet(depth, attention=squeeze_excitation).eval()
    for block in [*staged.stages[0].layer1, *staged.stages[2].layer3]:
        nn.init.constant_(block.attention.fc2.bias, -200)
        x = torch.rand(1, block.conv1.in_channels, 8, 8)
        shortcut = x if block.downsample is None else block.downsample(x)
        torch.testing.assert_close(block(x), shortcut.relu() if block.activate else shortcut)
