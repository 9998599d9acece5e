"""Networks of timm and torchvision as stages: exactly the library's maps and logits, and all of TDAF on them."""

import copy
import warnings

import pytest
import timm
import torch
from torch import nn
from torchvision import models

import tdaf
from tdaf import TDAF, fold
from tdaf.errors import UserError
from tdaf.model.flows import depth
from tdaf.model.freeze import fix_batch_norm

SHALLOW, LAYERS = {"depths": (1, 1, 1, 1)}, {"layers": (1, 1, 1, 1)}
# One member of each family of timm's that has stages, made small by its own arguments where there is no small one.
FAMILIES: dict[str, dict] = dict.fromkeys(
    (
        "test_byobnet test_convnext cpubone_nano cs3darknet_focus_s cspnext_tiny dla46x_c edgenext_xx_small "
        "test_efficientnet efficientvit_b0 efficientvit_m0 fasternet_t0 fastvit_t8 ghostnet_050 hgnetv2_b0 iformer_t "
        "inception_next_atto inception_v3 lcnetv2_small test_mambaout mobilenetv3_small_050 mobilevit_xxs test_nfnet "
        "pvt_v2_b0 regnetx_002 repghostnet_050 repvit_m0_9 resnest14d test_resnet starnet_s050 swiftformer_xs "
        "ese_vovnet19b_slim_dw "
    ).split(),
    {},
) | {
    "davit_tiny": SHALLOW | {"embed_dims": (32, 64, 128, 256), "num_heads": (1, 2, 4, 8)},
    "densenet121": {"block_config": (1, 1, 1, 1)},
    "res2next50": LAYERS,
    "resnetv2_18": LAYERS,
    "legacy_seresnet18": LAYERS,
    "sequencer2d_s": LAYERS | {"embed_dims": (32, 32, 32, 32)},
    "skresnet18": LAYERS,
    "swin_tiny_patch4_window7_224": {"depths": (1, 2, 1, 1), "embed_dim": 24},
    "swinv2_tiny_window8_256": {"depths": (1, 2, 1, 1), "embed_dim": 24},
    "swinv2_cr_tiny_224": {"depths": (1, 2, 1, 1), "embed_dim": 24},
    "tiny_vit_5m_224": SHALLOW | {"embed_dims": (32, 32, 64, 64), "num_heads": (1, 1, 2, 2)},
}


def own_state(staged, head):
    """By the library's names."""
    named = {name.split(".", 2)[2]: value for name, value in staged.state_dict().items()}
    assert len(named) == len(staged.state_dict())
    return {**named, **head.state_dict()}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_of_each_family(name):
    staged = tdaf.stages(f"timm/{name}", options=FAMILIES[name]).eval()
    classes = staged.classifier.classes
    head = staged.classifier(staged.widths[-1], classes).eval()
    image = torch.randn(1, 3, 96, 128)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        maps = staged(image)
        state = own_state(staged, head)
        arguments = staged.classifier.create.keywords
        whole = timm.create_model(name, **arguments).eval()
        whole.load_state_dict(state)
        assert torch.equal(head(maps[-1]), whole(image))
        theirs = timm.create_model(name, features_only=True, **arguments).eval()
        flat = {key.replace(".", "_"): value for key, value in state.items()}
        for key, value in theirs.state_dict().items():
            value.copy_(flat[key.replace(".", "_").removeprefix("model_")])
        for own, other, width, stride in zip(maps, theirs(image), staged.widths, staged.strides, strict=True):
            other = other if other.shape == own.shape else other.permute(0, 3, 1, 2)
            assert torch.equal(own, other)
            assert own.shape[1] == width and abs(96 / stride - own.shape[2]) <= 4  # inception pads nothing
    with_tdaf(staged, torch.randn(2, 3, 64, 64) if name != "inception_v3" else torch.randn(2, 3, 160, 160))


def with_tdaf(staged, images):
    """Forward, backward, a step, the state dict, fold."""
    body = TDAF(staged.train(), flows=2, anar=3, anar_width=32, gate_init="identity")
    optimizer = torch.optim.SGD(body.parameters(), lr=1e-3)
    loss = sum(x.square().mean() for x in body(images))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in body.parameters())
    assert all(gate.mask.weight.grad.abs().sum() > 0 for gate in body.gates.values())
    assert sum(p.grad is not None for p in staged.parameters()) > 0.9 * len([*staged.parameters()])
    other = copy.deepcopy(body)
    optimizer.step()
    state = body.state_dict()
    assert not any(torch.equal(other.state_dict()[key], state[key]) for key in state if key.endswith("mask.bias"))
    other.load_state_dict(state)
    with torch.no_grad():
        maps = body.eval()(images)
        assert all(torch.equal(a, b) for a, b in zip(maps, other.eval()(images)))
        folded = fold(body)
        for own, fast in zip(maps, folded(images)):
            assert (own - fast).abs().max() <= 2e-4 * own.abs().max()
    norms = [sum(isinstance(part, nn.BatchNorm2d) for part in net.stages.modules()) for net in (body, folded)]
    assert norms == [0, 0] or norms[1] < norms[0]
    assert len(body.earlier) == 1 and len(body.earlier[0]["stages"]) == depth(1, 2, len(body.stages))


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "mobilenet_v2", "regnet_y_400mf", "squeezenet1_1", "swin_t"])
def test_a_network_of_torchvision(name):
    staged = tdaf.stages(f"torchvision/{name}").eval()
    head = staged.classifier(staged.widths[-1], 1000).eval()
    whole = models.get_model(name).eval()
    image = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        maps, state = staged(image), own_state(staged, head)
        assert state.keys() == whole.state_dict().keys()
        for key, value in whole.state_dict().items():
            value.copy_(state[key])
        assert torch.equal(head(maps[-1]), whole(image))
    assert [x.shape[1] for x in maps] == staged.widths
    assert all(abs(128 / stride - x.shape[2]) <= 1 for x, stride in zip(maps, staged.strides))
    assert name in ("alexnet", "squeezenet1_1", "swin_t") or staged.strides == [2, 4, 8, 16, 32]
    assert all(after == 2 * before for before, after in zip(staged.strides, staged.strides[1:]))


REFUSED = {
    "timm/vit_tiny_patch16_224": "all 12 maps have one size, 1/16 of the image",
    "timm/test_maxvit": "does not take every size of image",
    "timm/crossvit_tiny_240": "its maps are not one after another",
    "timm/xception41p": "stage 2 reads blocks_0_norm_act, which is not the map of stage 1",
    "torchvision/googlenet": "it changes the colours itself",
    "torchvision/vit_b_16": "does not take every size of image",
    "timm/test_resnt": "did you mean test_resnet",
    "timm/resnet18.x": "there are resnet18.a1_in1k",
    "resnet18": "give timm/NAME or torchvision/NAME",
}


@pytest.mark.parametrize("network", REFUSED)
def test_what_has_no_stages_is_refused_by_name(network):
    with torch.device("meta"), warnings.catch_warnings(), pytest.raises(UserError) as error:
        warnings.simplefilter("ignore")
        tdaf.stages(network)
    assert REFUSED[network] in str(error.value)
    assert network.rpartition("/")[2].rstrip("*") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"options": {"pretrained_cfg": {"url": "x"}}}, "options: pretrained_cfg is nothing to set here"),
        ({"out_indices": [1, 9]}, "out_indices=[1, 9]: give some of 0 to 4"),
        ({"dims": 3}, "are for images"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with torch.device("meta"), pytest.raises(UserError) as error:
        tdaf.stages("timm/test_resnet", **settings)
    assert message in str(error.value)


def test_chosen_maps_end_the_stages():
    every, some = tdaf.stages("timm/test_resnet"), tdaf.stages("timm/test_resnet", out_indices=[1, 2, 3, 4])
    assert every.strides == [2, 4, 8, 16, 32] and some.strides == [4, 8, 16, 32]
    assert len(every.state_dict()) == len(some.state_dict())


class Own(nn.Module):
    """Writes into its input, has a batch norm that two places share, and goes another way in training."""

    def __init__(self):
        super().__init__()
        widths = [3, 8, 16, 24]
        self.features = nn.Sequential(
            *[nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b)) for a, b in zip(widths, widths[1:])]
        )
        self.act, self.fc = nn.ReLU(inplace=True), nn.Linear(24, 5)

    def forward(self, x, scale=1.0):
        for block in self.features:
            x = self.act(block(x))
            x += scale
        x = nn.functional.dropout(x.mean((2, 3)), 0.5, self.training)
        return self.fc(x)


class Writing(Own):
    def forward(self, x):
        x = self.features[0](x)
        x = self.features[1](nn.functional.relu(x.view_as(x), inplace=True))
        return self.fc(self.features[2](x).mean((2, 3)))


def test_a_stage_that_writes_into_the_map_of_the_one_before_is_refused():
    with pytest.raises(UserError, match="stage 2 writes into the map that it is given"):
        tdaf.stages(Writing(), nodes=["features.0", "features.1"])


def test_training_goes_its_own_way():
    staged = tdaf.stages("timm/test_convnext", options={"drop_path_rate": 0.9})
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(staged.train()(image)[-1], staged(image)[-1])
        assert torch.equal(staged.eval()(image)[-1], staged(image)[-1])


def test_a_module_of_ones_own():
    network = Own().eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = network(image)
        staged = tdaf.stages(copy.deepcopy(network)).eval()
        by_name = tdaf.stages(copy.deepcopy(network), nodes=["features.0", "features.1", "features.2"])
        maps = staged(image)
        kept = [x.clone() for x in maps]
        assert torch.equal(network.fc(maps[-1].mean((2, 3))), logits)
        assert all(torch.equal(a, b) for a, b in zip(maps, kept))
        first = by_name(image)[0]
        assert torch.equal(first, network.features[0](image)) and first.min() < 0
    assert staged.widths == [8, 16, 24] and staged.strides == [2, 4, 8] == by_name.strides


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        self.last = self.conv(x) * self.calls
        return self.pool(self.last).mean((2, 3))


def test_state_between_calls_is_refused():
    with pytest.raises(UserError, match="from call to call|in every call"):
        tdaf.stages(Counting())


def test_a_batch_norm_with_an_activation_is_known_as_batch_norm():
    """timm's BatchNormAct2d: what replaces the norm (fold, freeze, SyncBN) must not lose the activation."""
    staged = tdaf.stages("timm/test_efficientnet").eval()
    assert any("act" in name for name, part in staged.named_modules() if isinstance(part, nn.ReLU | nn.SiLU))
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = staged(image)
        frozen = copy.deepcopy(staged)
        fix_batch_norm(frozen, "frozen")
        synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(staged))
        for changed in (frozen, fold(staged)):
            assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(maps, changed(image)))
    kinds = [{type(part) for part in net.modules()} for net in (staged, frozen, synced)]
    assert nn.BatchNorm2d in kinds[0] and nn.BatchNorm2d not in kinds[1] | kinds[2]
    assert staged.state_dict().keys() == synced.state_dict().keys()
    acts = [sum(isinstance(part, nn.SiLU) for part in net.modules()) for net in (staged, frozen, synced)]
    assert acts[0] > 5 and acts == [acts[0]] * 3
