"""The demo videos: their class is a motion, which a moving picture tells and no single frame does."""

from __future__ import annotations

import csv
from pathlib import Path

import av
import numpy as np
import pytest

from tdaf.demo import action
from tdaf.demo.prepare import prepare


def test_the_moment_tells_nothing_of_the_class() -> None:
    """Drawn from the same numbers, all classes have one frame in common: the one that is drawn before the class."""
    for seed in range(8):
        films = [list(action.pictures(np.random.default_rng(seed), name, 48, 40, 12)) for name in action.NAMES]
        common = [t for t in range(12) if len({film[t].tobytes() for film in films}) == 1]
        assert len(common) == 1
        assert len({films[c][common[0] - 3].tobytes() for c in range(6)}) >= 5  # up and down may meet half-way round


@pytest.mark.parametrize("name", action.NAMES)
@pytest.mark.parametrize("frame", [0, 11, 23])
def test_places_and_angles_are_uniform_in_every_class(name: str, frame: int) -> None:
    size = np.array([60, 44, 360])
    found = [action.poses(np.random.default_rng(seed), name, 60, 44, 24)[frame] for seed in range(1000)]
    ranks = np.sort(np.array(found) / size, axis=0)
    steps = (np.arange(1000) + 0.5) / 1000
    assert np.abs(ranks - steps[:, None]).max() < 0.06  # Kolmogorov and Smirnov: one in a thousand beyond


def test_classes_move_as_they_are_called() -> None:
    for seed in range(20):
        steps = {}
        for name in action.NAMES:
            path = action.poses(np.random.default_rng(seed), name, 60, 44, 24)
            jump = np.diff(path, axis=0)
            steps[name] = (jump + [30, 22, 180]) % [60, 44, 360] - [30, 22, 180]
            np.testing.assert_allclose(steps[name], steps[name][:1].repeat(23, axis=0), atol=1e-9)
            assert np.count_nonzero(np.abs(steps[name][0]) > 1e-9) == 1
        pace = steps["moving right"][0, 0]
        assert steps["moving left"][0, 0] == pytest.approx(-pace) and pace > 0.8
        assert steps["moving down"][0, 1] == pytest.approx(pace)  # y points down
        assert steps["moving up"][0, 1] < 0
        assert 5 < steps["turning clockwise"][0, 2] < 12
        assert steps["turning clockwise"][0, 2] == pytest.approx(-steps["turning anticlockwise"][0, 2])


def test_layout(tmp_path: Path) -> None:
    tmp_path = prepare("kinetics", tmp_path, seed=3, train=14, val=6, size=32)
    inode = tmp_path.stat().st_ino
    (tmp_path / "frame_counts.csv").write_text("kept by tasks/action/counts.py")
    assert prepare("kinetics", tmp_path.parent, seed=3, train=14, val=6, size=32).stat().st_ino == inode, "drawn again"
    for split, count in (("train", 14), ("val", 6)):
        files = sorted(path.relative_to(tmp_path / split) for path in (tmp_path / split).rglob("*.mp4"))
        rows = list(csv.DictReader((tmp_path / f"{split}.csv").open()))
        assert list(rows[0]) == ["label", "youtube_id", "time_start", "time_end", "split"] and len(rows) == count
        assert {row["split"] for row in rows} == {split}
        ends = [f"{int(row['time_start']):06d}_{int(row['time_end']):06d}.mp4" for row in rows]
        named = {Path(row["label"]) / f"{row['youtube_id']}_{end}" for row, end in zip(rows, ends, strict=True)}
        assert named == set(files) and {len(row["youtube_id"]) for row in rows} == {11}
        assert {row["label"] for row in rows} == set(action.NAMES)
    sizes, counts = set(), set()
    for path in tmp_path.rglob("*.mp4"):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
            assert stream.average_rate == 25
            sizes.add((stream.width, stream.height))
            counts.add(sum(1 for _ in container.decode(stream)))
    assert len(sizes) > 5 and min(map(min, sizes)) >= 28 and all(w % 2 == h % 2 == 0 for w, h in sizes)
    assert min(counts) >= 24 and max(counts) <= 40 and len(counts) > 5
