"""Attention maps drawn in their place, their statistics against ones by hand, and the command for every task."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import videos
from commands import pictures, script
from PIL import Image
from tiny import tiny
from tiny_run import Pictures
from torch import Tensor, nn

from scripts.attention import attention
from tasks.pose.source import COCO
from tdaf.build import make
from tdaf.cli.compose import compose
from tdaf.engine import checkpoint
from tdaf.engine.precision import Precision
from tdaf.engine.predict import Predictor
from tdaf.engine.trained import build_network
from tdaf.engine.visualize import attention_panels, log_samples
from tdaf.errors import UserError
from tdaf.media.attention_sheet import OPACITY, Panel, coloured, sheet
from tdaf.model import maps as statistics
from tdaf.model.flows import TDAF, MultiScale
from tdaf.model.maps import attention_maps, mask_eta, mask_strides


def places(whole: Tensor, part: Tensor) -> list[tuple[int, int]]:
    """(top, left) of every place where the part stands in the whole, but for rounding."""
    inside, own = whole.numpy().astype(np.int16), part.numpy().astype(np.int16)
    windows = np.lib.stride_tricks.sliding_window_view(inside[0], own.shape[2], 1)
    found = []
    for top, left in np.argwhere((np.abs(windows - own[0, 0]) <= 1).all(2)):
        cut = inside[:, top : top + own.shape[1], left : left + own.shape[2]]
        if cut.shape == own.shape and np.abs(cut - own).max() <= 1:
            found.append((int(top), int(left)))
    return found


def test_the_colours_rise_in_lightness() -> None:
    shown = coloured(torch.linspace(0, 1, 200)[None]).float()
    luma = (shown * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)[0]
    assert (luma.diff() > 0).float().mean() > 0.95 and luma[0] < 2 and luma[-1] > 240
    outside = coloured(torch.tensor([[-1.0, 2.0, float("nan")]]))
    assert torch.equal(outside, coloured(torch.tensor([[0.0, 1.0, 0.0]])))


@pytest.mark.parametrize("style", ["both", "overlay", "mask"])
def test_a_sheet_has_each_mask_in_its_place(style: str) -> None:
    picture = torch.randint(0, 256, (3, 24, 48), dtype=torch.uint8)
    masks = {(2, 1): torch.rand(6, 12), (3, 1): torch.rand(12, 24), (3, 3): torch.rand(6, 12)}
    strides = {(2, 1): 4, (3, 1): 2, (3, 3): 4}
    shown = sheet([Panel(picture, masks)], strides, 0.5, style=style, tile=100)
    large = picture.repeat_interleave(2, 1).repeat_interleave(2, 2)
    grey = (large.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    ((top, left),) = places(shown, large)
    first: dict[tuple[int, int], tuple[int, int]] = {}
    for key, mask in masks.items():
        side = 2 * strides[key]
        plain = coloured(mask.repeat_interleave(side, 0).repeat_interleave(side, 1))
        overlay = ((1 - OPACITY) * grey + OPACITY * plain.float()).round().to(torch.uint8)
        tiles = {"both": [overlay, plain], "overlay": [overlay], "mask": [plain]}[style]
        found = [place for tile in tiles for place in places(shown, tile)]
        assert len(found) == len(tiles) and len({x for _, x in found}) == 1
        assert all(b - a >= 48 for (a, _), (b, _) in itertools.pairwise(found))
        first[key] = found[0]
    assert first[2, 1][0] == top and first[3, 1][0] == first[3, 3][0] > top + 48
    assert left + 96 < first[2, 1][1] == first[3, 1][1] < first[3, 3][1] - 96


def test_what_a_mask_has_beyond_the_picture_is_not_drawn() -> None:
    picture, mask = torch.randint(0, 256, (3, 32, 24), dtype=torch.uint8), torch.rand(4, 4)
    shown = sheet([Panel(picture, {(2, 5): mask})], {(2, 5): 8}, 0.5, tile=32)
    ((top, left),) = places(shown, coloured(mask[:, :3].repeat_interleave(8, 0).repeat_interleave(8, 1)))
    assert (shown[:, top : top + 32, left + 24 :] == 255).all()
    # nor does it count in a stretched scale
    mask[:, :3], mask[0, 3], mask[1, 3] = 0.4 + 0.2 * torch.rand(4, 3), 0.0, 1.0
    own = sheet([Panel(picture, {(2, 5): mask})], {(2, 5): 8}, 0.5, scale="own", style="mask", tile=32)
    seen = mask[:, :3].repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert len(places(own, coloured((seen - seen.min()) / (seen.max() - seen.min())))) == 1


@pytest.mark.parametrize("shape", [(2, 3, 80, 40), (2, 10, 3, 80, 40), (2, 3, 5, 80, 40), (2, 3, 3, 5, 80, 40)])
def test_panels_show_the_middle_view_and_several_moments(shape: tuple[int, ...]) -> None:
    clip = len(shape) == 6 or shape[1:3] == (3, 5)
    views = shape[1] if len(shape) - clip == 5 else 1
    inputs = torch.randint(0, 256, shape, dtype=torch.uint8)
    masks = {(2, 1): torch.rand(2 * views, 1, *([3] if clip else []), 8, 4)}
    row = views + (views - 1) // 2
    own = inputs.reshape(2 * views, 3, *shape[-3 if clip else -2 :])[row]
    panels = attention_panels(inputs, masks, 1)
    if not clip:
        (panel,) = panels
        assert torch.equal(panel.picture, own) and torch.equal(panel.masks[2, 1], masks[2, 1][row, 0])
        return
    # of five frames the four moments show the first, second, fourth and last, over which three steps of masks lie
    for panel, frame, step in zip(panels, (0, 1, 3, 4), (0, 0, 1, 2), strict=True):
        assert torch.equal(panel.picture, own[:, frame]) and torch.equal(panel.masks[2, 1], masks[2, 1][row, 0, step])
        assert panel.title == f"sampled frame {frame + 1} of 5"
    (last,) = attention_panels(inputs, masks, 1, [4], "a film")
    assert torch.equal(last.picture, own[:, 4]) and last.title == "a film, sampled frame 5 of 5"


@pytest.mark.parametrize("dims", [2, 3])
def test_strides_are_those_of_the_masks(dims: int) -> None:
    network = nn.Sequential(TDAF(tiny(dims), flows=3, eta=0.25, anar_width=64))
    masks = attention_maps(network, torch.randn(1, 3, *[33] * dims))
    strides = mask_strides(network)
    assert list(strides) == list(masks) and mask_eta(network) == 0.25
    for key, mask in masks.items():
        assert mask.shape[-1] == -(-33 // strides[key]), key
    for other in (tiny(), TDAF(tiny(), flows=1), MultiScale(tiny(), flows=2)):
        assert mask_strides(other) == {} and mask_eta(other) is None
    assert mask_eta(TDAF(tiny(), flows=3, gated=[])) is None


def test_gate_statistics_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [torch.tensor([[[[0.0, 1.0]]], [[[0.5, 0.5]]]]), torch.tensor([[[[0.2, 0.4]]]])]
    monkeypatch.setattr(statistics, "attention_maps", lambda network, x: {(2, 1): given[int(x)]})
    one = statistics.gate_statistics(nn.Identity(), [torch.tensor(0)])[2, 1]
    assert (one.masks, one.size, one.mean, one.smallest, one.largest) == (2, (1, 2), 0.5, 0.0, 1.0)
    # variances 0.25 and 0 within, the mean mask (0.25, 0.75), at each place a variance of 0.0625
    assert one.within == pytest.approx(0.125**0.5) and one.between == 0 and one.deviation == pytest.approx(0.125**0.5)
    assert one.fixed == pytest.approx(0.25) and one.varying == pytest.approx(0.25)
    assert one.closed == one.open == 0.25
    three = statistics.gate_statistics(nn.Identity(), [torch.tensor(0), torch.tensor(1)])[2, 1]
    values = torch.cat(given).double().flatten()
    assert three.masks == 3 and three.deviation == pytest.approx(values.std(correction=0).item())
    assert three.between == pytest.approx(torch.tensor([0.5, 0.5, 0.3], dtype=torch.float64).std(correction=0).item())
    given[1] = torch.full((1, 1, 3, 3), 0.5)
    other = statistics.gate_statistics(nn.Identity(), [torch.tensor(0), torch.tensor(1)])[2, 1]
    assert other.size is None and other.fixed is None and other.varying is None
    assert other.mean == 0.5 and other.closed == pytest.approx(0.25 / 1.5)  # each mask counts alike


def test_flow_statistics_by_hand() -> None:
    network = TDAF(tiny(), flows=2, anar_width=64)
    for norm, mean, variance in ((network.earlier[0]["stages"][0].norm, -3.0, 2.0), (network.stages[0].norm, 2.0, 4.0)):
        norm.running_mean.fill_(mean)
        norm.running_var.fill_(variance)
    found = statistics.flow_statistics(nn.Sequential(network))
    first, last = found["stage 1", 1], found["stage 1", 2]
    assert (first.norms, first.mean, first.variance) == (1, 3, 2) and (last.mean, last.variance) == (2, 4)
    assert first.mean_distance == pytest.approx(2.5) and first.variance_distance == pytest.approx(0.5)
    assert last.mean_distance == last.variance_distance == 0
    stages = [(f"stage {stage}", flow) for stage, flow in ((1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2), (4, 2))]
    assert list(found) == [*stages, *((f"gate {stage}", 2) for stage in (1, 2, 3))]
    assert {flow for _, flow in statistics.flow_statistics(TDAF(tiny(), flows=3, norm="shared"))} == {3}
    assert statistics.flow_statistics(MultiScale(tiny(), flows=2)).keys() == set(stages)
    assert statistics.flow_statistics(tiny()) == {}


SETTINGS = "recipe=demo gpus=0 loader.workers=0 width=16".split()
CLASSES = {"coco_pose": list(COCO)}


def run_folder(folder: Path, task: str, *more: str, classes: int = 4) -> Path:
    """A run's folder with the checkpoint of an untrained network."""
    config = compose([f"task={task}", *SETTINGS, *more])
    names = CLASSES.get(task, [*"abcdefghij"][:classes])
    made = make(config["task"], "task", data=SimpleNamespace(classes=names))
    torch.manual_seed(0)
    about = {"config": config, "classes": names}
    (folder / "checkpoints").mkdir(parents=True)
    state = {"network": build_network(config, made).state_dict(), "about": about}
    checkpoint.save(state, folder / "checkpoints" / checkpoint.BEST)
    return folder


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture, a video of 12 frames and a broken file."""
    folder = tmp_path_factory.mktemp("given")
    Image.fromarray(videos.pattern(1)[0]).save(folder / "a.png")
    videos.write(folder / "film.mp4", videos.pattern(12))
    (folder / "broken.jpg").write_text("no picture")
    return folder


ANSWERS = {
    "imagenet": "top5", "cifar10": "top5", "coco_fcos": "detections", "coco_pose": "keypoints", "kinetics": "top5"
}  # fmt: skip


@pytest.mark.parametrize("task", ANSWERS)
def test_every_task_prepares_its_own_inputs(
    task: str, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, out = run_folder(tmp_path / "run", task), tmp_path / "out"
    settings = f"checkpoint={run} input={given} out={out} tile=64 moments=2 statistics=3"
    assert script(attention, settings.split()) == 0
    said = capsys.readouterr()
    assert "broken.jpg" in said.err and "| flow | stage | " in said.out and "| stage 1 " in said.out
    drawn = {path.name for path in out.iterdir()}
    assert drawn == {"film.mp4.png", "statistics.json", *(["a.png.png"] if task != "kinetics" else [])}
    document = json.loads((out / "statistics.json").read_text())
    assert all(0 < gate["mean"] < 1 and gate["masks"] > 0 for gate in document["gates"])
    places = [(flow["part"], flow["flow"]) for flow in document["flows"]]
    assert ("stage 1", 1) in places and ("stage 1", 3) in places
    frames = Predictor(run, device="cpu")(given / "film.mp4")
    assert len(frames) == 12 and all(ANSWERS[task] in answer for (answer,) in frames)


def test_validation_samples_without_an_input(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = pictures(tmp_path / "data", each=3)
    run = run_folder(tmp_path / "run", "imagenet", f"data.root={data}", classes=2)
    out = tmp_path / "out"
    arguments = f"checkpoint={run} out={out} samples=2 statistics=4 tile=48 scale=own".split()
    assert script(attention, arguments) == 0
    assert {path.name for path in out.iterdir()} == {"val-00000.png", "val-00003.png", "statistics.json"}
    gate = json.loads((out / "statistics.json").read_text())["gates"][0]
    shown = capsys.readouterr().out
    assert gate["masks"] == 4 and f" {gate['mean']:.3f} " in shown


def test_a_network_without_masks_is_refused(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", "imagenet", "flows=1")
    with pytest.raises(UserError, match="has no attention maps: .*flows=1 is the plain"):
        script(attention, [f"checkpoint={run}", f"out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("checkpoint=x input={given} out={given}", "is the input's own folder"),
        ("style=heat", "style=heat: give both, overlay or mask"),
        ("input={given}", "give checkpoint="),
        ("checkpoint={imagenet} input={given} boxes=x.json", "boxes=x.json: neither"),
        ("checkpoint={coco_pose} boxes=x.json", "boxes=x.json: this goes with input="),
    ],
)
def test_mistakes_are_a_line(arguments: str, message: str, given: Path, tmp_path: Path) -> None:
    places = {"given": given}
    places |= {task: run_folder(tmp_path / task, task) for task in ("imagenet", "coco_pose") if task in arguments}
    with pytest.raises(UserError, match=message) as refused:
        script(attention, arguments.format(**places).split())
    assert "\n" not in str(refused.value)


class Board:
    """A run folder's pictures, by name."""

    def __init__(self) -> None:
        self.images: dict[str, Tensor] = {}

    def picture(self, name: str, image: Tensor, step: int) -> None:
        assert image.dtype == torch.uint8 and image.dim() == 3 and step == 7
        self.images[name] = image


@pytest.mark.parametrize("tdafs", [0, 1, 2])
def test_what_tensorboard_gets_leaves_every_module_in_its_mode(tdafs: int) -> None:
    layers = [TDAF(tiny(), flows=2, anar_width=64) for _ in range(tdafs)]
    network = nn.Sequential(LastMap(*layers), nn.BatchNorm2d(3)).train()
    network[1].eval()  # a part that is kept as it is, as frozen norms are
    statistics_before = [buffer.clone() for buffer in network.buffers()]
    modes = [module.training for module in network.modules()]
    dataset, board = Pictures(5, bad=(1,)), Board()
    showing = SimpleNamespace(visualize=lambda outputs, batch: {"seen": [image.byte() for image in batch["input"]]})
    for task, names in ((showing, {"seen/0", "seen/1", "seen/2"}), (SimpleNamespace(), set())):
        board.images.clear()
        log_samples(network, task, dataset, 3, Precision("fp32", torch.device("cpu")), board, 7)
        assert board.images.keys() == names | ({f"attention/{place}" for place in range(3)} if tdafs == 1 else set())
        assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(*pair) for pair in zip(statistics_before, network.buffers(), strict=True))


class LastMap(nn.Module):
    """An image and the sum of what TDAFs make of it."""

    def __init__(self, *bodies: nn.Module) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)

    def forward(self, x: Tensor) -> Tensor:
        return x + sum(body(x)[-1].mean() for body in self.bodies)
