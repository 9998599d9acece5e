"""A run as a library: its checkpoint opened without Hydra, what it may not ask for, and Predictor on any picture."""

import copy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import videos
import yaml
from commands import ROOT
from PIL import Image

from tdaf import settings as files
from tdaf.engine.predict import Predictor
from tdaf.engine.trained import load_checkpoint
from tdaf.errors import RunError, UserError
from tdaf.settings import checked_settings, named_modules, read_yaml

OLD = ROOT / "tests" / "old" / "run"


def read_settings(path: Path, trust: str = "") -> dict[str, Any]:
    return checked_settings(read_yaml(path), str(path), trust)


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return torch.load(OLD / "checkpoints" / "best.pt", weights_only=True)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)


def put(settings: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with `value` at a dotted place."""
    settings = copy.deepcopy(settings)
    node = settings
    *parents, last = key.split(".")
    for name in parents:
        node = node.setdefault(name, {})
    node[last] = value
    return settings


def saved(state: dict[str, Any], path: Path, **about: Any) -> Path:
    torch.save({**state, "about": {**state["about"], **about}}, path)
    return path


def test_a_run_folder_and_its_checkpoints() -> None:
    run = load_checkpoint(OLD)
    assert run.path == OLD / "checkpoints" / "best.pt" and run.folder == OLD and run.settings["flows"] == 2
    network = run.network()
    assert not any(module.training for module in network.modules())
    assert list(run.task().classes) == list(run.classes) and len(run.classes) == 10
    last = load_checkpoint(OLD / "checkpoints" / "last.pt")
    kept = torch.load(last.path, weights_only=True)
    for name, value in last.network().state_dict().items():  # the averaged weights are those that are evaluated
        assert torch.equal(value, kept["ema"][f"module.{name}"]), name
    assert any(not torch.equal(kept["network"][name], value) for name, value in last.weights.items())


def test_it_needs_no_hydra(pixels: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    code = f"""
import sys
from tdaf.engine.predict import Predictor
(answer,) = Predictor({str(OLD)!r}, device="cpu")({str(tmp_path / "a.png")!r})
assert len(answer["top5"]) == 5
assert not {{"hydra", "omegaconf", "tdaf.cli"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_settings_are_changed_by_their_names() -> None:
    run = load_checkpoint(OLD, {"task.val_transforms.1crop.size": 40, "gpus": 0})
    assert run.settings["task"]["val_transforms"]["1crop"]["size"] == 40 and run.settings["gpus"] == 0
    for key, message in (("task.protocl", "did you mean task.protocol"), ("tsk.protocol", "did you mean task.protocol"),
                         ("seed.x", "no such setting"), ("task.", "no such setting")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            load_checkpoint(OLD, {key: 1})


def test_settings_of_older_versions(state: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = put(put(state["about"]["config"], "backbone._target_", "tdaf.nets.resnet"), "tdaf.eta_", 0.25)

    def rename(settings: dict[str, Any]) -> None:
        settings["tdaf"]["eta"] = settings["tdaf"].pop("eta_")
        settings["backbone"]["_target_"] = "tdaf.model.backbones.resnet.resnet"

    monkeypatch.setattr(files, "UPGRADES", [*files.UPGRADES, rename])
    run = load_checkpoint(saved(state, tmp_path / "a.pt", config=old))
    assert run.settings["backbone"]["_target_"] == "tdaf.model.backbones.resnet.resnet"
    assert run.settings["tdaf"]["eta"] == 0.25 and run.network() is not None
    with pytest.raises(UserError, match="not the settings of a run: KeyError"):
        load_checkpoint(OLD)  # has no eta_


def test_a_run_folders_settings_are_those_of_its_checkpoint(state: dict[str, Any], tmp_path: Path) -> None:
    settings = read_settings(OLD / "config.yaml")
    assert {**settings, "run_dir": None} == {**load_checkpoint(OLD).settings, "run_dir": None}
    assert "torch.optim" in named_modules(settings) and "tasks.classification.task" in named_modules(settings)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**settings, "lr": 0.5}).replace("lr: 0.5", "lr: 1e-3"))
    assert read_settings(tmp_path / "config.yaml")["lr"] == 0.001
    with pytest.raises(FileNotFoundError):
        read_settings(tmp_path / "none.yaml")


NODES = (
    "task", "optim.factory", "schedule.decay", "trainer", "unknown", "task.val_transforms.1crop", "data.nested.deeper",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["checkpoint", "config.yaml"])
@pytest.mark.parametrize("node", NODES)
def test_what_is_not_to_be_trusted_is_refused_and_leaves_no_mark(
    node: str, kind: str, state: dict[str, Any], tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    bombs = (
        {"_target_": "os.mkdir", "path": str(mark)},
        {"_target_": "tdaf.model.flows.torch.load", "f": str(mark)},
        {"_target_": "tasks.classification.task.Path.touch", "self": str(mark)},
        [{"_target_": "os.system", "command": f"mkdir {mark}"}],
        {"_target_": ["os.mkdir"]},
    )
    for bomb in bombs:
        where = node if isinstance(bomb, dict) else f"{node}.more"
        config = put(state["about"]["config"], where, bomb)
        with pytest.raises(UserError, match="asks to run .*not part of tdaf") as refused:
            if kind == "checkpoint":
                load_checkpoint(saved(state, tmp_path / "a.pt", config=config))
            else:
                (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
                read_settings(tmp_path / "config.yaml")
        assert "\n" not in str(refused.value) and not mark.exists()


def test_modules_of_ones_own_are_imported_when_trusted(
    state: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    text = "from pathlib import Path\nfrom tasks.classification.task import Classification as Own\n"
    (tmp_path / "owntask.py").write_text(f"{text}Path({str(mark)!r}).mkdir()\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = saved(state, tmp_path / "a.pt", config=put(state["about"]["config"], "task._target_", "owntask.Own"))
    for trust in ((), ("owntas",), ("os",)):
        with pytest.raises(UserError, match="owntask.Own.*add trust=owntask"):
            load_checkpoint(path, trust=trust)
    assert not mark.exists()
    assert type(load_checkpoint(path, trust="owntask").task()).__module__.startswith("tasks.") and mark.exists()


def test_what_is_made_to_fill_the_memory_is_refused_at_once(state: dict[str, Any], tmp_path: Path) -> None:
    layers = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"] + [
        f"a{k}: &a{k} [{', '.join(9 * [f'*a{k - 1}'])}]" for k in range(1, 40)
    ]
    merged = ["b0: &b0 {x: 1}"] + [f"b{k}: &b{k} {{<<: [{', '.join(9 * [f'*b{k - 1}'])}]}}" for k in range(1, 20)]
    texts = {"\n".join(layers): "alias", "\n".join(merged): "alias", 5000 * "[": "cannot be read",
             "x: " + 300_000 * "1": "larger than", "a: [": "cannot be read", "[1]": "it has no task"}  # fmt: skip
    start = time.monotonic()
    for text, message in texts.items():
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=message) as refused:
            read_settings(tmp_path / "config.yaml")
        assert "\n" not in str(refused.value)
    shared: list = [1]
    for _ in range(60):
        shared = [shared] * 9
    deep: list = [1]
    for _ in range(300):
        deep = [deep]
    for bomb, message in ((shared, "more than 262144 values"), (deep, None)):
        path = saved(state, tmp_path / "a.pt", config=put(state["about"]["config"], "data.x", bomb))
        if message:
            with pytest.raises(UserError, match=message):
                load_checkpoint(path)
        else:
            load_checkpoint(path)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"config": None}, "was not written by train.py"),
        ({"config": {name: {} for name in (*files.BUILT, *files.READ)}}, "it has no task._target_"),
        ({"classes": None}, "does not name the classes"),
        ({"classes": ["a", "b"]}, "is not of this network: size mismatch for head"),
    ],
)
def test_checkpoints_that_say_too_little(
    about: dict[str, Any], message: str, state: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        load_checkpoint(saved(state, tmp_path / "a.pt", **about)).network()


def test_files_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text("no checkpoint")
    for path, message in (("text", "damaged or is not"), ("none", "no checkpoint at"), (".", "no checkpoint at"),
                          (300 * "x", "cannot be read: File name too long")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            load_checkpoint(tmp_path / path)

    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refused)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        load_checkpoint(tmp_path / "text")


def test_predictor_takes_arrays_images_and_paths_alike(pixels: np.ndarray, tmp_path: Path) -> None:
    predictor = Predictor(OLD, device="cpu", batch=2)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    other = pixels[::-1].copy()
    (expected,) = predictor(pixels)
    assert expected["top5"][0]["probability"] >= expected["top5"][4]["probability"] > 0
    several = [other, Image.fromarray(pixels), tmp_path / "a.png", pixels, str(tmp_path / "a.png")]
    found = predictor(several)
    assert len(found) == 5 and all(answers == found[1] for answers in found[2:])
    assert found[1][0]["text"] == expected["text"] and found[0][0]["text"] != expected["text"]
    assert [entry["probability"] for entry in found[1][0]["top5"]] == pytest.approx(
        [entry["probability"] for entry in expected["top5"]], rel=1e-4
    )
    folded = Predictor(load_checkpoint(OLD), device="cpu", folded=True)(pixels)
    assert folded[0]["text"] == expected["text"] and predictor([]) == []


def test_predictor_answers_a_video_frame_by_frame(tmp_path: Path) -> None:
    film = videos.write(tmp_path / "film.mp4")
    predictor = Predictor(OLD, device="cpu")
    frames = videos.decoded(film)
    answers = predictor(film)
    assert len(answers) == len(frames) == 30 and answers[7][0]["text"] == predictor(frames[7])[0]["text"]
    short = videos.rewritten(film, tmp_path / "short.mp4", movflags="faststart")
    short.write_bytes(short.read_bytes()[:-600])
    with pytest.warns(UserWarning, match="short.mp4: .*damaged after"):
        assert 0 < len(predictor(short)) < 30


def test_predictor_names_what_it_cannot_take(tmp_path: Path, pixels: np.ndarray) -> None:
    predictor = Predictor(OLD, device="cpu")
    (tmp_path / "broken.png").write_text("no picture")
    shutil.copy(tmp_path / "broken.png", tmp_path / "broken.mp4")
    for given in (pixels.astype(np.float32), pixels[..., 0], pixels[..., [0, 1, 2, 0]], 3):
        with pytest.raises(UserError, match=r"a picture is uint8 \(height, width, 3\)"):
            predictor(given)
    with pytest.raises(UserError, match="there is no such file"):
        predictor([pixels, tmp_path / "none.png"])
    with pytest.raises(UserError, match="predict.boxes: there is no such setting"):
        predictor(pixels, boxes="a.json")
    for name in ("broken.png", "broken.mp4"):
        with pytest.raises(RunError, match=f"cannot read .*{name}"):
            predictor([pixels, tmp_path / name])
