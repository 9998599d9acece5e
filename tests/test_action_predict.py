"""The action task around its network: settings, losses, data by protocol, and what it says of a user's videos."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.action.task import Action
from tasks.action.transforms import clip_three_crops, clip_train, clip_val
from tasks.action.videos import ActionVideos
from tdaf.demo import action as demo
from tdaf.errors import UserError

MEAN, STD = [0.4, 0.4, 0.4], [0.2, 0.3, 0.2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinetics")
    demo.write_kinetics(folder, 0, 6, 6, 24)
    return folder


def grey(frames: int, side: int = 24) -> bytes:
    """A video whose frame t has the value 5 t."""
    return demo.encoded([Image.fromarray(np.full((side, side + 8, 3), 5 * t, np.uint8)) for t in range(frames)])


class Names:
    classes = [f"class {k}" for k in range(7)]


def task(data: Any = Names, **settings: Any) -> Action:
    views = {
        "clip": clip_val(size=20, short_side=20),
        "hara": clip_val(size=20, short_side=20),
        "30view": clip_three_crops(size=20, short_side=20),
    }
    own = {"val_transforms": views, "mean": MEAN, "std": STD, "frames": 8}
    return Action(data, clip_train(size=16), **{**own, **settings})


@pytest.mark.parametrize("protocol", ["clip", "hara", "30view"])
def test_every_video_is_judged_by_all_its_windows(root: Path, protocol: str) -> None:
    """A network that tells a video's class in a single one of its windows, and is sure of it."""
    made = task(ActionVideos(str(root)), protocol=protocol)
    split, judge, records = made.dataset("val"), made.evaluator(), []
    for start in range(0, len(split), 5):
        batch = split.collate([split[i] for i in range(start, min(start + 5, len(split)))])
        logits = torch.zeros(len(batch["label"]), 6)
        logits[torch.arange(len(logits)), batch["label"]] = 20.0 * (batch["window"] == 1)
        logits[:, 0] += 1e-3
        outputs = logits[:, None].expand(-1, 3, -1) if protocol == "30view" else logits
        records += judge.update(outputs, batch)
    values, files = judge.compute(records)
    assert values["top1"] == 100 and values["videos"] == 6 and values["clip_top1"] < 60
    told = json.loads(files["videos.json"])
    names = [f"val/{name}/{demo.identifier('val', place)}_000000_000010.mp4" for place, name in enumerate(demo.NAMES)]
    assert [video["video"] for video in told] == names and [video["top5"][0] for video in told] == list(demo.NAMES)
    assert sum(video["windows"] for video in told) == len(split)


def test_a_users_videos_in_windows_one_after_the_other(tmp_path: Path) -> None:
    lengths = {"a.mp4": 21, "b.mp4": 3, "c.mp4": 16}
    for name, frames in lengths.items():
        (tmp_path / name).write_bytes(grey(frames))
    (tmp_path / "still.png").touch()
    (tmp_path / "broken.mp4").write_bytes(grey(20)[:500])
    inputs = task(stride=2).predict_dataset(sorted(tmp_path.iterdir()))
    assert {path.name for path in inputs.pictures.faults} == {"still.png", "broken.mp4"}
    frames = [[inputs.pictures.frame(place) for place in inputs.shown(i)] for i in range(len(inputs))]
    shown = [(inputs.name(i).split("/")[-1], frames[i]) for i in range(len(inputs))]
    assert shown == [
        ("a.mp4, frames 0 to 15", list(range(16))),
        ("a.mp4, frames 16 to 20", list(range(16, 21))),
        ("b.mp4, frames 0 to 2", [0, 1, 2]),
        ("c.mp4, frames 0 to 15", list(range(16))),
    ]
    assert sorted(place for i in range(len(inputs)) for place in inputs.shown(i)) == list(range(len(inputs.pictures)))
    batch = inputs.collate([inputs[i] for i in range(len(inputs))])
    assert batch["input"].shape == (4, 3, 8, 20, 20)
    assert batch["frames"].tolist() == [[0, 16], [16, 21], [0, 3], [0, 16]]
    torch.testing.assert_close(batch["seconds"], batch["frames"].double() / 25)
    seen = (batch["input"].float().mean((1, 3, 4)) / 5).round().int().tolist()
    assert seen[0] == list(range(0, 16, 2)) and seen[1] == [16, 18, 20, 16, 18, 20, 16, 18]
    assert seen[2] == [0, 2] * 4
    with pytest.raises(UserError, match="^input: there is no video among 1 files"):
        task().predict_dataset([tmp_path / "still.png"])


def test_answers_and_their_document(tmp_path: Path) -> None:
    for name, frames in {"a.mp4": 12, "b.mp4": 5}.items():
        (tmp_path / name).write_bytes(grey(frames))
    made = task()
    inputs = made.predict_dataset(sorted(tmp_path.iterdir()))
    batch = inputs.collate([inputs[i] for i in range(3)])
    logits = torch.log(torch.tensor([[1, 2, 3, 4, 5, 6, 79], [70, 5, 5, 5, 5, 5, 5], [1, 90, 1, 2, 2, 2, 2]]) / 100)
    answers = made.postprocess(logits, batch)
    assert [entry["class"] for entry in answers[0]["top5"]] == [f"class {k}" for k in (6, 5, 4, 3, 2)]
    assert [entry["probability"] for entry in answers[0]["top5"]] == pytest.approx([0.79, 0.06, 0.05, 0.04, 0.03])
    assert answers[0]["text"].startswith("class 6 79.0%, class 5 6.0%, ")
    said: dict[int, list] = {}
    for index, answer in enumerate(answers):
        for picture in inputs.shown(index):
            said.setdefault(picture, []).append(answer)
    found = [(inputs.pictures.file(p), inputs.pictures.frame(p), said[p]) for p in range(17)]
    document = json.loads(json.dumps(made.to_json(found)))
    windows = [
        [(w["start"], w["end"], w["seconds"], w["top5"][0]["class"]) for w in video["windows"]]
        for video in document["videos"]
    ]
    assert [Path(video["file"]).name for video in document["videos"]] == ["a.mp4", "b.mp4"]
    assert windows[0] == [(0, 8, pytest.approx([0, 0.32]), "class 6"), (8, 12, pytest.approx([0.32, 0.48]), "class 0")]
    assert windows[1] == [(0, 5, pytest.approx([0, 0.2]), "class 1")]
    assert set(document["videos"][0]["windows"][0]) == {"start", "end", "seconds", "top5"}
    picture = torch.full((3, 200, 260), 128, dtype=torch.uint8)
    drawn = [made.draw(picture, [answer]) for answer in answers] + [made.draw(picture, [])]
    assert all(d.shape == picture.shape and (d[:, :100] == 128).all() and not torch.equal(d, picture) for d in drawn)
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "10view"}, "^protocol=10view: this data set has clip, hara, 30view$"),
        ({"frames": 0}, "^frames=0: give 1 or more"),
        ({"mean": [0.5, 0.5]}, "^mean, std: give three"),
        ({"val_transforms": {"clip": clip_val()}, "protocol": "hara"}, "^protocol=hara: this data set has clip$"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        task(**settings)
