"""Frozen stages and fixed batch norms of a backbone, with and without TDAF: what moves, what is shared, what loads."""

import copy
import functools

import pytest
import torch
from tiny import settle
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tdaf.engine.dist import synchronise
from tdaf.engine.optim import optimizer
from tdaf.errors import UserError
from tdaf.measure import parameters
from tdaf.model.attention.se_cbam import CBAM
from tdaf.model.backbones.resnet import resnet
from tdaf.model.flows import TDAF, MultiScale
from tdaf.model.fold import fold
from tdaf.model.freeze import FixedBatchNorm2d, FrozenBatchNorm2d, fix_batch_norm, freeze_stages
from tdaf.model.pretrained import load
from tdaf.model.staged import Staged

BODIES = {
    "plain": lambda staged: staged,
    "tdaf": lambda staged: TDAF(staged, flows=3, anar=5, anar_width=32),
    "shared": lambda staged: TDAF(staged, flows=3, anar=3, anar_width=32, norm="shared"),
    "multiscale": lambda staged: MultiScale(staged, flows=3),
    "attended": lambda staged: TDAF(resnet(18, width=8, attention=CBAM), flows=2, anar_width=32),
}
NORMS = (_BatchNorm, FrozenBatchNorm2d, FixedBatchNorm2d)


def build(kind: str = "tdaf", mode: str = "trained", stages: int = 0) -> Staged:
    """Statistics and weights are drawn before anything is fixed."""
    torch.manual_seed(0)
    body = settle(BODIES[kind](resnet(18, width=8)))
    fix_batch_norm(body, mode)
    freeze_stages(body, stages)
    return body


def step(body: Staged) -> None:
    """One step of training."""
    torch.manual_seed(1)
    body.train()
    trained = torch.optim.SGD([p for p in body.parameters() if p.requires_grad], lr=0.1)
    sum(x.square().mean() for x in body(torch.randn(2, 3, 40, 33))).backward()
    trained.step()


def moved(body: Staged) -> set[str]:
    """The names of the state dict that a step of training changes."""
    before = {name: value.clone() for name, value in body.state_dict().items()}
    step(body)
    return {name for name, value in body.state_dict().items() if not torch.equal(value, before[name])}


def is_gate(name: str) -> bool:
    return "gates." in name


def of_norms(body: nn.Module) -> set[str]:
    """The parameters of the backbone's norms."""
    names = {name for name, _ in body.named_parameters() if not is_gate(name)}
    return {name for name in names if isinstance(body.get_submodule(name.rpartition(".")[0]), NORMS)}


@pytest.mark.parametrize("mode", ["frozen", "affine", "trained"])
@pytest.mark.parametrize("kind", BODIES)
def test_what_of_the_norms_moves_in_any_flow(kind: str, mode: str) -> None:
    plain = build(kind)
    affine, total = of_norms(plain), parameters(plain).total
    statistics = {name for name in plain.state_dict() if "running" in name or "tracked" in name}
    body = build(kind, mode)
    count = parameters(body)
    frozen = sum(plain.get_parameter(name).numel() for name in affine) if mode == "frozen" else 0
    assert count.total == count.trainable == total - frozen
    names = moved(body)
    gates = {name for name in statistics if is_gate(name)}
    assert gates <= names and bool(gates) == (kind in ("tdaf", "shared", "attended"))
    assert (statistics if mode == "trained" else gates) == statistics & names
    assert not affine & names if mode == "frozen" else affine <= names
    assert {name for name, _ in body.named_parameters() if ".attention." not in name} <= names


@pytest.mark.parametrize("mode", ["frozen", "affine"])
@pytest.mark.parametrize("kind", ["plain", "tdaf", "multiscale"])
def test_fixed_norms_compute_what_evaluation_does(kind, mode):
    ours, theirs = build(kind, mode).train(), build(kind).eval()
    for module in ours.modules():
        if isinstance(module, _BatchNorm):  # the gates' own
            module.eval()
    x = torch.randn(2, 3, 40, 33)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            for a, b in zip(ours(x), theirs(x), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["frozen", "affine", "trained"])
@pytest.mark.parametrize("kind", ["plain", "tdaf", "multiscale"])
def test_stages_are_frozen_in_every_flow(kind, mode):
    body = build(kind, mode, 2)
    before = {name: value.clone() for name, value in body.named_parameters()}
    step(body)
    for name, value in body.named_parameters():
        frozen = name.startswith(("stages.0.", "stages.1."))
        assert torch.equal(value, before[name]) == frozen, name
        assert value.requires_grad != frozen
    for flow in getattr(body, "earlier", ()):
        assert not any(p.requires_grad for p in flow["stages"][0].parameters())
    if kind == "tdaf":
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in body.gates["1"].parameters())


@pytest.mark.parametrize("count", [-1, 5])
def test_a_count_that_the_backbone_has_not_is_refused(count):
    with pytest.raises(UserError, match=f"frozen_stages={count}: this backbone has 4 stages, so give 0 to 4"):
        freeze_stages(resnet(18, width=8), count)
    with pytest.raises(UserError, match="batch_norm=fixed: give one of frozen, affine, trained"):
        fix_batch_norm(resnet(18, width=8), "fixed")


def assert_shared(body: Staged) -> None:
    checked = 0
    for flow in body.earlier:
        for name, parameter in flow.named_parameters(remove_duplicate=False):
            assert parameter is body.get_parameter(name), name
            checked += 1
    assert checked > 10
    first, last = body.earlier[0]["stages"][0].bn1, body.stages[0].bn1
    assert first.running_mean is not last.running_mean


CHANGES = {
    "copied": lambda body: copy.deepcopy(nn.Sequential(body))[0],
    "to empty": lambda body: nn.Sequential(body.to("meta")).to_empty(device="cpu")[0],
    "averaged": lambda body: torch.optim.swa_utils.AveragedModel(body).module,
    "synchronised": lambda body: synchronise(body, torch.device("cpu")),
}


@pytest.mark.parametrize(("mode", "kind"), [("frozen", FrozenBatchNorm2d), ("affine", FixedBatchNorm2d)])
@pytest.mark.parametrize("change", CHANGES)
def test_flows_stay_shared_and_norms_fixed(mode: str, kind: type, change: str) -> None:
    body = build("tdaf", mode, 1)
    keys = list(body.state_dict())
    body = CHANGES[change](body).train()
    assert_shared(body)
    assert list(body.state_dict()) == keys
    assert not any(p.requires_grad for p in body.stages[0].parameters())
    for stages in [body.stages, *[flow["stages"] for flow in body.earlier]]:
        norms = [m for m in stages.modules() if isinstance(m, NORMS)]
        assert norms and all(type(norm) is kind for norm in norms)


@pytest.mark.parametrize("mode", ["frozen", "affine"])
def test_our_checkpoints_load_with_the_statistics_of_every_flow(mode):
    trained = nn.ModuleDict({"body": build("tdaf"), "head": nn.Linear(64, 5)})
    state = trained.state_dict()
    body = BODIES["tdaf"](resnet(18, width=8))
    fix_batch_norm(body, mode)
    report = load(nn.ModuleDict({"body": body, "neck": nn.Conv2d(64, 8, 1)}), state)
    assert report.missing == ["neck.weight", "neck.bias"] and report.unexpected == ["head.weight", "head.bias"]
    x = torch.randn(2, 3, 40, 33)
    for a, b in zip(body.eval()(x), trained["body"].eval()(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    statistics = [flow["stages"][0].bn1.running_mean for flow in body.earlier] + [body.stages[0].bn1.running_mean]
    assert len({tuple(s.tolist()) for s in statistics}) == 3
    # and back, without TDAF and with ordinary norms
    plain = resnet(18, width=8)
    report = load(plain, nn.ModuleDict({"body": body}).state_dict())
    assert report.missing == [] and torch.equal(plain.stages[0].bn1.running_mean, body.stages[0].bn1.running_mean)


@pytest.mark.parametrize("mode", ["frozen", "affine", "trained"])
@pytest.mark.parametrize("kind", ["plain", "tdaf", "shared", "multiscale"])
def test_folding(kind, mode):
    body = build(kind, mode, 1)
    folded, x = fold(body), torch.randn(2, 3, 40, 33)
    assert not any(isinstance(m, NORMS) for m in folded.modules())
    with torch.no_grad():
        for ours, theirs in zip(folded(x), body.eval()(x), strict=True):
            assert theirs.abs().max() > 1e-3
            assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_maps_keep_their_number_format():
    x = torch.randn(2, 4, 5, 5).bfloat16()
    for mode in ("frozen", "affine"):
        norm = Staged([nn.BatchNorm2d(4)], [4], [1])
        fix_batch_norm(norm, mode)
        for gradient in (False, True):
            given = x.clone().requires_grad_(gradient)
            assert isinstance(norm.stages[0], NORMS) and norm.stages[0](given).dtype == torch.bfloat16


def test_fixed_norms_are_norms_to_the_optimizer():
    body = build("plain", "affine")
    built = optimizer(
        body, functools.partial(torch.optim.SGD), lr=1.0, weight_decay=0.1, batch=1, norm_weight_decay=False
    )
    still = [p for group in built.param_groups if group["weight_decay"] == 0 for p in group["params"]]
    assert {id(p) for p in still} == {id(body.get_parameter(name)) for name in of_norms(body)}
