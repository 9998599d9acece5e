"""A folder as people have them, by docs/extending.md's commands: 20 videos of many kinds and 6 damaged ones."""

from __future__ import annotations

import json
import runpy
from collections import Counter
from pathlib import Path

import pages
import pytest
import videos
from commands import call

VP9 = {"deadline": "realtime", "cpu-used": "8"}
# where: codec, frames, (width, height), options
WHOLE: dict[str, tuple[str, int, tuple[int, int], dict[str, str]]] = {
    "train/a b/one.mp4": ("libx264", 1, (64, 48), {}),
    "train/a b/two.mkv": ("libx264", 2, (48, 64), {"bf": "2"}),
    "train/a b/no_b.mp4": ("libx264", 30, (64, 48), {"bf": "0", "g": "10"}),
    "train/a b/b.mp4": ("libx264", 40, (66, 50), {"bf": "3", "g": "12"}),
    "train/a b/long.mp4": ("libx264", 400, (48, 36), {"bf": "3", "g": "250", "preset": "ultrafast"}),
    "train/a b/mpeg4.avi": ("mpeg4", 25, (80, 46), {"bf": "0"}),
    "train/a b/UPPER.AVI": ("mpeg4", 17, (64, 48), {"bf": "2"}),
    "train/c/h264.avi": ("libx264", 33, (64, 48), {"bf": "2"}),
    "train/c/odd.webm": ("libvpx-vp9", 20, (61, 45), VP9),
    "train/c/tall.webm": ("libvpx-vp9", 12, (36, 90), VP9),
    "train/c/vp9.mkv": ("libvpx-vp9", 9, (64, 48), VP9),
    "train/c/vp9.mp4": ("libvpx-vp9", 16, (64, 48), VP9),
    "train/c/mpeg4.mp4": ("mpeg4", 15, (70, 40), {"bf": "2"}),
    "train/c/open.mkv": ("libx264", 50, (64, 48), {"bf": "4", "x264-params": "open-gop=1:keyint=11:scenecut=0"}),
    "val/a b/name: one, 50% [x].mp4": ("libx264", 31, (64, 48), {"bf": "2"}),
    "val/a b/small.mp4": ("libx264", 8, (16, 16), {}),
    "val/a b/mpeg4.mkv": ("mpeg4", 7, (64, 48), {"bf": "2"}),
    "val/c/vp9.webm": ("libvpx-vp9", 18, (64, 48), VP9),
    "val/c/wide.mp4": ("libx264", 64, (160, 32), {"bf": "0", "g": "1"}),
    "val/c/mpeg4.avi": ("mpeg4", 3, (64, 48), {"bf": "2"}),
}
DAMAGED = {
    "train/a b/empty.mp4": "the file is empty",
    "train/a b/cut.mp4": "no video, or its header is cut off or damaged",
    "train/c/garbage.webm": "no video, or its header is cut off or damaged",
    "train/c/sound.mp4": "it has no pictures, only sound",
    "val/a b/0 nothing.mp4": "it has no pictures, only a header",
    "val/c/headless.mp4": "no video, or its header is cut off or damaged",
}
RUN = (
    "task=kinetics recipe=demo gpus=0 flows=2 trainer.max_steps=12 trainer.batch=4 trainer.pictures=1 "
    "trainer.evaluate_every=100 loader.workers=0 task.train_transform.size=16 "
    "task.val_transforms.clip.size=16 task.val_transforms.clip.short_side=16"
).split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folder")
    for name, (codec, frames, size, options) in WHOLE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        videos.write(root / name, videos.pattern(frames, *size), 25, codec=codec, **options)
    (root / "train/a b/empty.mp4").touch()
    whole = (root / "train/a b/b.mp4").read_bytes()
    (root / "train/a b/cut.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "train/c/garbage.webm").write_bytes(bytes(range(256)) * 20)
    videos.sound(root / "train/c/sound.mp4")
    videos.write(root / "val/a b/0 nothing.mp4", videos.pattern(0))
    (root / "val/c/headless.mp4").write_bytes(whole[200:])
    assert len(WHOLE) == 20 and len(DAMAGED) == 6
    return root


def test_the_skip_list_leaves_them_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, run = tmp_path / "skip.txt", tmp_path / "run"
    (_, *check), (_, *train), _ = pages.commands("own videos", **{"PATH": folder, "skip.txt": out})
    script = lambda: runpy.run_path("scripts/check_data.py", run_name="__main__")  # noqa: E731
    assert call(monkeypatch, [*check, "loader.workers=0"], script) == 1
    assert sorted(out.read_text().splitlines()) == sorted(DAMAGED)
    said = capsys.readouterr().out
    sizes = Counter(name.rpartition("/")[0] for name in [*WHOLE, *DAMAGED])
    for place, bad in Counter(name.rpartition("/")[0] for name in DAMAGED).items():
        assert f"{bad:6d} in {place}, of {sizes[place]}\n" in said
    assert call(monkeypatch, [*train, *RUN[2:], f"run_dir={run}", "trainer.max_steps=2"]) == 0
    assert "6 on the skip list" in (run / "log.txt").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["metrics"]["videos"], summary["samples"], summary["skipped"]) == (6, 18, 2)
    assert summary["skipped_in_training"] == 0
