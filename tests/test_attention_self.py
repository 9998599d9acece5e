"""Attention augmented convolution, stand-alone self-attention and the attention branch network: equations, counts,
places and losses."""

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mechanisms import complete, count, gigas, mechanism, on_meta, places
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.classification.abn import AttentionBranchClassification
from tasks.classification.task import Classification
from tasks.classification.transforms import cifar_val
from tdaf.errors import UserError
from tdaf.measure import saved_bytes
from tdaf.model.attention.abn import AttentionBranch2d
from tdaf.model.attention.self_attention import HEADS, AugmentedConv2d, LocalAttention2d
from tdaf.model.backbones.resnet import resnet
from tdaf.model.backbones.vgg import vgg
from tdaf.model.flows import TDAF
from tdaf.model.staged import Staged
from tests.tiny import settle


def layer(stride: int = 1, halved: int = 0) -> AugmentedConv2d:
    torch.manual_seed(0)
    return AugmentedConv2d(nn.Conv2d(12, 48, 3, stride, padding=1), 0.2, 0.4, halved, side=3)


def augmented(x: Tensor, module: AugmentedConv2d) -> Tensor:
    """Bello et al. 2019, Eqs. 1-4 and the concatenation of Sec. 3.2, one sample, head, query and key at a time."""
    side = (len(module.rows) + 1) // 2
    kernel = module.qkv.weight.flatten(1)
    key, value = module.keys // HEADS, module.values // HEADS
    height, width = x.shape[2:]
    every = [(i, j) for i in range(height) for j in range(width)]
    attended = torch.zeros(len(x), module.values, height, width)
    for b in range(len(x)):
        projected = {place: kernel @ x[b, :, *place] for place in every}
        for head in range(HEADS):
            for q_place in every:
                q = projected[q_place][head * key :][:key]
                logits = []
                for place in every:
                    k = projected[place][module.keys + head * key :][:key]
                    down, right = (max(1 - side, min(side - 1, t - s)) for s, t in zip(q_place, place, strict=True))
                    logits.append(q @ (k + module.rows[down + side - 1] + module.columns[right + side - 1]))
                weights = (torch.stack(logits) / math.sqrt(key)).softmax(0)
                values = [projected[place][2 * module.keys + head * value :][:value] for place in every]
                total = sum(w * v for w, v in zip(weights, values, strict=True))
                attended[b, head * value : (head + 1) * value, *q_place] = total
    mixed = torch.einsum("oi,bihw->bohw", module.mix.weight.flatten(1), attended)
    return torch.cat([F.conv2d(x, module.conv.weight, padding=1), mixed], dim=1)


def local(x: Tensor, module: LocalAttention2d) -> Tensor:
    """Ramachandran et al. 2019, Eq. 3, one sample, head, query and key at a time."""
    w_q, w_k, w_v = module.qkv.weight.flatten(1).chunk(3)
    heads, depth = len(module.rows), len(w_q) // len(module.rows)
    height, width = x.shape[2:]
    y = torch.zeros(len(x), len(w_q), height, width)
    for b in range(len(x)):
        for h in range(heads):
            own = slice(h * depth, (h + 1) * depth)
            for i in range(height):
                for j in range(width):
                    q = (w_q @ x[b, :, i, j])[own]
                    near = [(a, c) for a in range(i - 3, i + 4) for c in range(j - 3, j + 4)]
                    near = [(a, c) for a, c in near if 0 <= a < height and 0 <= c < width]
                    logits = []
                    for a, c in near:
                        r = torch.cat([module.rows[h, a - i + 3], module.columns[h, c - j + 3]])
                        logits.append(q @ (w_k @ x[b, :, a, c])[own] + q @ r)
                    weights = torch.stack(logits).softmax(0)
                    y[b, own, i, j] = sum(
                        w * (w_v @ x[b, :, a, c])[own] for w, (a, c) in zip(weights, near, strict=True)
                    )
    return y


@torch.no_grad()
@pytest.mark.parametrize(("stride", "halved"), [(1, 0), (2, 0), (1, 1), (2, 1)])
def test_augmented_convolution(stride: int, halved: int) -> None:
    """On a map larger than the tables; with a stride or halved, the attention reads a smaller one of averages."""
    module = layer(stride, halved)
    x = torch.randn(1, 12, 9, 6)
    small = x
    for _ in range((stride > 1) + halved):
        parts = F.pad(torch.ones(1, 1, *small.shape[2:]), (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2).sum((4, 5))
        total = F.pad(small, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2).sum((4, 5))
        small = total / parts
    seen = augmented(small, module)[:, -module.values :]
    local = F.conv2d(x, module.conv.weight, stride=stride, padding=1)
    assert local.shape[2:] == (-(-9 // stride), -(-6 // stride))
    assert stride > 1 or halved or seen.std((2, 3)).min() > 0.01
    if halved:
        seen = F.interpolate(seen, size=local.shape[2:], mode="bilinear")
    torch.testing.assert_close(module(x), torch.cat([local, seen], dim=1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", [(9, 6), (1, 1), (2, 5)])
def test_local_attention(size: tuple[int, int]) -> None:
    module, x = LocalAttention2d(6, 16), torch.randn(1, 6, *size)
    assert module.heads == 2
    torch.testing.assert_close(module(x), local(x, module), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_local_attentions_stride_is_an_average_pool_after_the_attention():
    module = LocalAttention2d(8, 16, stride=2)
    x = torch.randn(1, 8, 7, 10)
    whole = copy.deepcopy(module)
    whole.pool = nn.Identity()
    y = module(x)
    assert y.shape == (1, 16, 4, 5)
    torch.testing.assert_close(y[:, :, :3], F.avg_pool2d(whole(x)[:, :, :6], 2))
    torch.testing.assert_close(y[:, :, 3:], F.avg_pool2d(whole(x)[:, :, 6:], (1, 2)))


def added(width: int, inputs: int, values: int, side: int, keys: int = 160) -> int:
    """Parameters of an augmented 3x3 less those of the plain one (Sec. 3.2)."""
    attention = inputs * (2 * keys + values) + values**2 + 2 * (2 * side - 1) * keys // 8
    return attention - 9 * inputs * values


def test_parameters_by_hand_and_as_published() -> None:
    fifty = 25_557_032 + 4 * added(128, 128, 16, 14) + 6 * added(256, 256, 24, 14) + 3 * added(512, 512, 48, 7)
    assert count(on_meta(50, "aa")) + 2049 * 1000 == fifty == pytest.approx(25.8e6, abs=0.05e6)
    first = added(128, 64, 32, 14) + added(256, 128, 64, 14) + added(512, 256, 128, 7)
    rest = 3 * added(128, 128, 32, 14) + 5 * added(256, 256, 64, 14) + 2 * added(512, 512, 128, 7)
    narrow = count(on_meta(34, "aa")) + 513 * 1000
    assert narrow == 21_797_672 + first + rest == pytest.approx(20.7e6, abs=0.05e6)
    assert count(on_meta(101, "aa")) + 2049 * 1000 == pytest.approx(45.4e6, abs=0.05e6)
    # 3 w^2 + 7 w, the transforms and embeddings of local attention, for the 9 w^2 of a 3x3 convolution
    widths = [64] * 3 + [128] * 4 + [256] * 6 + [512] * 3
    local = count(on_meta(50, "sasa")) + 2049 * 1000
    assert local == 25_557_032 + sum(7 * w - 6 * w**2 for w in widths) == 18_038_632
    assert local == pytest.approx(18.0e6, abs=0.05e6)


@pytest.mark.parametrize(("ratio", "published"), [(0.25, 24.3e6), (0.5, 22.3e6), (0.75, 20.7e6)])
def test_published_parameters_of_other_ratios(ratio: float, published: float) -> None:
    wide = on_meta(50, "aa", keys=ratio, values=ratio)
    assert count(wide) + 2049 * 1000 == pytest.approx(published, abs=0.05e6)


def test_published_gflops() -> None:
    """Two a multiply-add. SASA's definition has 49 products with keys, embeddings and values for a query: 7.0 GFLOPs as
    published. What runs has 100 with keys and values, and less with embeddings."""
    plain, fifty, local = (2 * gigas(on_meta(50, name)) for name in ("none", "aa", "sasa"))
    assert fifty == pytest.approx(8.3, rel=0.015)
    assert 2 * gigas(on_meta(34, "aa")) == pytest.approx(7.1, rel=0.015)
    assert fifty / plain - 1 == pytest.approx(0.022, abs=0.001)  # TDAF's Table 3b: +1.3%
    defined = plain * 1e9
    for width, side, blocks in ((64, 56, 3), (128, 28, 4), (256, 14, 6), (512, 7, 3)):
        for block in range(blocks):
            read = side * 2 if block == 0 and width > 64 else side  # attention before the pool
            defined += 2 * ((3 * width**2 + 3 * 49 * width) * read**2 - 9 * width**2 * side**2)
    assert defined / 1e9 == pytest.approx(7.0, abs=0.05)
    assert local == pytest.approx(7.26, abs=0.01)
    assert local / plain - 1 == pytest.approx(-0.112, abs=0.002)  # published -14.6%, TDAF's Table 3b +34.5%


@pytest.mark.parametrize(
    ("depth", "name", "blocks", "locals_"),
    [(18, "conv1", [2, 2, 2], 16), (50, "conv2", [4, 6, 3], 16), (152, "conv2", [8, 36, 3], 50)],
)
def test_places(depth: int, name: str, blocks: list[int], locals_: int) -> None:
    """One convolution of every block in the last three stages; and every 3x3 of the blocks, nothing else."""
    expected = [f"stages.{s}.layer{s + 1}.{b}.{name}" for s, n in enumerate(blocks, start=1) for b in range(n)]
    assert places(on_meta(depth, "aa"), AugmentedConv2d) == expected
    staged = on_meta(depth, "sasa")
    assert len(places(staged, LocalAttention2d)) == locals_
    assert {m.heads for m in staged.modules() if isinstance(m, LocalAttention2d)} == {HEADS}
    spatial = [n for n, m in staged.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert spatial == ["stages.0.conv1"]


@torch.no_grad()
def test_embeddings_start_small() -> None:
    staged = resnet(50, attention=mechanism("aa"))
    tables = [m.rows for m in staged.modules() if isinstance(m, AugmentedConv2d)]
    assert torch.cat(tables).std().item() == pytest.approx(20**-0.5, rel=0.1)


def test_memory_is_far_from_49_copies_of_keys_and_values():
    with torch.device("meta"):
        module = LocalAttention2d(64, 64)
        kept = saved_bytes(module, torch.zeros(8, 64, 56, 56))
    assert kept < 300e6  # 49 copies of keys and values alone would be 629 MB


def task(
    kind: type[Classification] = AttentionBranchClassification, classes: int = 4, **settings: Any
) -> Classification:
    data = SimpleNamespace(classes=[f"class {k}" for k in range(classes)])
    return kind(data, cifar_val(), {"1crop": cifar_val()}, [0.5] * 3, [0.2] * 3, **settings)


def tdaf(flows: int, **settings: Any) -> Callable[[Staged], TDAF]:
    return lambda staged: TDAF(staged, flows=flows, anar_width=64, **settings)


def network(depth: int = 18, body: Callable[[Staged], nn.Module] | None = None, classes: int = 4) -> nn.Module:
    return task(classes=classes).network(resnet(depth, width=8, attention=mechanism("abn")), body or tdaf(1))


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def silent(net: nn.Module) -> list[str]:
    named = net.named_parameters()
    return [name for name, p in named if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]


def literal(x: Tensor, stage: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """The authors' models/imagenet/resnet.py from the third stage's map on: mask, branch's scores, map to be pooled."""
    branch = stage.attention
    ax = x
    for block in branch.layers[0]:
        y = block.bn1(F.conv2d(ax, block.conv1.weight)).relu()
        y = block.bn2(F.conv2d(y, block.conv2.weight, padding=1)).relu()
        y = block.bn3(F.conv2d(y, block.conv3.weight))
        shortcut = ax
        if block.downsample is not None:
            shortcut = block.downsample[1](F.conv2d(ax, block.downsample[0].weight))
        ax = (y + shortcut).relu()
    ax = branch.maps_norm(F.conv2d(branch.norm(ax), branch.maps.weight)).relu()
    mask = 1 / (1 + torch.exp(-branch.mask_norm(F.conv2d(ax, branch.mask.weight, padding=1))))
    scores = F.conv2d(ax, branch.scores.weight).flatten(2).mean(2)
    attended = torch.empty_like(x)
    for c in range(x.shape[1]):
        attended[:, c] = x[:, c] * mask[:, 0] + x[:, c]
    return mask, scores, stage.layer4(attended).relu()


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_the_last_stage_is_the_literal_transcription(training: bool) -> None:
    stage = settle(network(50, classes=5), size=64).body.stages[-1].train(training)
    x = torch.rand(3, 128, 5, 7)
    mask, scores, expected = literal(x, copy.deepcopy(stage))
    assert mask.std() > 0.01 and scores.shape == (3, 5)
    found = stage(x)
    torch.testing.assert_close(found[:, 5:], expected, rtol=1e-4, atol=1e-5)
    everywhere = scores[..., None, None].expand(-1, -1, *found.shape[2:])
    torch.testing.assert_close(found[:, :5], everywhere, rtol=1e-4, atol=1e-5)


def test_parameters_and_flops_are_those_of_the_definition() -> None:
    """The publication prints neither; the paper's text has more than 20 % more parameters, at ResNet-152's +0.8 %."""
    plain, ours = on_meta(), on_meta(50, "abn")
    with torch.device("meta"):
        complete(ours, 1000)
    conv = lambda i, o, k: i * o * k * k  # noqa: E731
    first = conv(1024, 512, 1) + conv(512, 512, 3) + conv(512, 2048, 1) + conv(1024, 2048, 1)
    other = conv(2048, 512, 1) + conv(512, 512, 3) + conv(512, 2048, 1)
    norms = 3 * 2 * (512 + 512 + 2048) + 2 * 2048
    branch = 2 * 2048 + conv(2048, 1000, 1) + 2 * 1000 + conv(1000, 1000, 1) + conv(1000, 1, 3) + 2
    added = count(ours) - count(plain)
    assert added == first + 2 * other + norms + branch == 18_027_834
    assert added / 60_192_808 > 0.2  # ResNet-152's last stage is the same
    each = first + 2 * other + conv(2048, 1000, 1) + conv(1000, 1, 3)  # and the scores once, of the mean
    assert gigas(ours) - gigas(plain) == pytest.approx((each * 14**2 + conv(1000, 1000, 1)) / 1e9, rel=1e-6)


def test_vgg_has_one_before_its_last_stage() -> None:
    with torch.device("meta"):
        plain, staged = vgg(16), complete(vgg(16, attention=mechanism("abn")), 1000)
    convs, maps = 3 * (512 * 512 * 9 + 512), 512 * 1000 + 9 * 1000
    assert count(staged) - count(plain) == convs + 2 * 512 + maps + 2 * 1000 + 1000 * 1000 + 2
    more = (3 * 512 * 512 * 9 + maps) * 14**2 + 1000 * 1000
    assert gigas(staged) - gigas(plain) == pytest.approx(more / 1e9, rel=1e-6)
    stage = complete(vgg(11, attention=mechanism("abn")), 3).stages[-1]
    assert stage(torch.rand(2, 512, 8, 6)).shape == (2, 3 + 512, 4, 3)


@pytest.mark.parametrize("head", ["published", "linear"])
def test_each_head_and_its_keys(head: str) -> None:
    """The names of a state dict are those that checkpoints have."""
    with torch.device("meta"):
        net = task(head=head).network(vgg(11, attention=mechanism("abn")), tdaf(1))
        plain = task(Classification, head=head).network(vgg(11), tdaf(1))
    ours = net.state_dict()
    added = {name for name in ours if name.startswith("body.stages.4.attention.")}
    assert "body.stages.4.attention.layers.0.16.weight" in added
    rest = {name: t.shape for name, t in ours.items() if name not in added}
    assert rest == {name: t.shape for name, t in plain.state_dict().items()}
    names = [name for name, _ in net.named_parameters()]  # an optimiser's state is by this order
    assert names.index("body.stages.4.attention.mask.weight") < names.index("body.stages.4.features.16.weight")


def test_the_outputs_are_alike_in_both_modes_and_their_losses_add_up() -> None:
    abn, net, x, batch = task(), network(), pixels(2, 3, 64, 64), {"label": torch.tensor([1, 3])}
    outputs = net(x)
    losses = abn.losses(outputs, batch)
    torch.testing.assert_close(losses["cross_entropy"], F.cross_entropy(outputs["logits"], batch["label"]))
    torch.testing.assert_close(losses["attention_branch"], F.cross_entropy(outputs["branch"], batch["label"]))
    sum(losses.values()).backward()
    assert silent(net) == []
    for mode in (True, False):
        for shape in ((2, 4), (2, 5, 4)):
            outputs = net.train(mode)(pixels(*shape[:-1], 3, 33, 40))
            assert {name: tuple(value.shape) for name, value in outputs.items()} == {"logits": shape, "branch": shape}
    plain = task(Classification)
    outputs = net(x)
    records = abn.evaluator().update(outputs, batch)
    assert records == plain.evaluator().update(outputs["logits"], batch) and len(records) == 2
    assert abn.postprocess(outputs, batch) == plain.postprocess(outputs["logits"], batch)
    assert len(abn.visualize(outputs, {**batch, "input": x})["prediction"]) == 2


@pytest.mark.parametrize("kind", [tdaf(3), tdaf(3, rematerialise=True), tdaf(2, norm="shared")])
def test_under_tdaf_the_branch_runs_once_and_all_flows_train(kind: Any) -> None:
    net, calls = network(body=kind), []
    branches = [m for m in net.modules() if isinstance(m, AttentionBranch2d)]
    branches[0].maps_norm.register_forward_hook(lambda *_: calls.append(1))
    outputs = net(pixels(2, 3, 97, 75))
    assert len(branches) == len(calls) == 1 and outputs["branch"].shape == (2, 4)
    sum(task().losses(outputs, {"label": torch.tensor([0, 2])}).values()).backward()
    assert silent(net) == []
    assert branches[0].norm.num_batches_tracked == 1


def test_other_tasks_and_other_backbones_are_refused() -> None:
    staged = resnet(18, width=8, attention=mechanism("abn"))
    net = task(Classification).network(staged, tdaf(3))
    with pytest.raises(UserError, match="attention: .* names the classes of an image, so it needs a task"):
        net(pixels(2, 3, 64, 64))
    with pytest.raises(UserError, match="a backbone with an attention branch; give attention=abn"):
        task().network(resnet(18, width=8), tdaf(1))
