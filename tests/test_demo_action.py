"""The demo videos: their class is a motion, which a moving picture tells and no single frame does."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from tdaf.demo import action, scene
from tdaf.demo.prepare import prepare

WIDTH, HEIGHT, FRAMES = 36, 32, 7


def decoded(content: bytes) -> np.ndarray:
    """(T, H, W, 3) in 0..1."""
    with av.open(io.BytesIO(content)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]) / 255


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    """As a network sees them, through the encoder and back, but shorter."""
    films = []
    for index in range(240):
        rng = scene.generator(0, "train", index)
        images = list(action.pictures(rng, action.NAMES[action.label(index)], WIDTH, HEIGHT, FRAMES))
        films.append(decoded(action.encoded(images)))
    return films


LABELS = np.array([action.label(index) for index in range(240)])


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


def accuracies(features: np.ndarray) -> list[float]:
    """Of least squares onto the classes, the nearest class mean and the nearest neighbour; each half of the videos is
    judged by what was learnt of the other."""
    right = np.zeros(3)
    for fold in range(2):
        known, asked = np.arange(240) // 6 % 2 != fold, np.arange(240) // 6 % 2 == fold
        mean, scale = features[known].mean(axis=0), features[known].std(axis=0) + 1e-9
        train, val, labels = (features[known] - mean) / scale, (features[asked] - mean) / scale, LABELS[known]
        weights = np.linalg.solve(train.T @ train + 20 * np.eye(train.shape[1]), train.T @ np.eye(6)[labels])
        means = np.stack([train[labels == c].mean(axis=0) for c in range(6)])
        far = ((val[:, None] - train) ** 2).sum(axis=-1)
        guesses = (val @ weights).argmax(1), ((val[:, None] - means) ** 2).sum(-1).argmin(1), labels[far.argmin(1)]
        right += [(guess == LABELS[asked]).sum() for guess in guesses]
    return list(right / 240)


def thumbnail(frame: np.ndarray) -> np.ndarray:
    """4 x 4 cells in colour."""
    rows = np.array_split(frame, 4)
    return np.array([cell.mean((0, 1)) for row in rows for cell in np.array_split(row, 4, axis=1)]).ravel()


def edges(frame: np.ndarray) -> np.ndarray:
    """Strengths of edges by direction (8, with the sign of the step) in the whole frame and in its borders."""
    grey = frame.mean(-1)
    down, across = np.gradient(grey)
    direction = ((np.arctan2(down, across) / (2 * np.pi) * 8).round() % 8).astype(int)
    strength = np.hypot(down, across)
    border = np.ones_like(grey, bool)
    border[3:-3, 3:-3] = False
    return np.array([strength[(direction == d) & part].sum() for d in range(8) for part in (border, ~border)])


@pytest.mark.parametrize("look", [thumbnail, edges])
@pytest.mark.parametrize("moment", [0, 5])
def test_a_single_frame_stays_near_chance(
    clips: list[np.ndarray], look: Callable[[np.ndarray], np.ndarray], moment: int
) -> None:
    """Chance is 0.17, with a standard deviation of 0.024. The encoder predicts frame 5 from others, and frame 0 not."""
    frames = [clip[moment] for clip in clips]
    assert max(accuracies(np.stack([look(frame) for frame in frames]))) < 0.27
    # what a class would leave in its frames is found: a light streak, say, at the side that the figure goes to
    marked = [frame.copy() for frame in frames]
    for frame, label in zip(marked, LABELS, strict=True):
        side = frame if label % 2 else frame.transpose(1, 0, 2)
        side[:3] += (label == 0) + (label == 1)
        side[-3:] += (label == 2) + (label == 3)
    assert max(accuracies(np.stack([look(frame) for frame in marked]))) > 0.35


def motion(clip: np.ndarray) -> np.ndarray:
    """(right, down, clockwise): the motion that explains the changes of brightness best, in least squares (Lucas and
    Kanade 1981, with a turn), over a picture whose sides meet."""
    grey = clip.mean(-1)
    for axis in (1, 2):
        for _ in range(2):
            grey = (np.roll(grey, 1, axis) + 2 * grey + np.roll(grey, -1, axis)) / 4
    across, down = ((np.roll(grey, -1, a) - np.roll(grey, 1, a))[1:-1] / 2 for a in (2, 1))
    change = (grey[2:] - grey[:-2]) / 2
    height, width = grey.shape[1:]
    found = []
    for gx, gy, dt in zip(across, down, change, strict=True):
        weight = np.abs(dt)
        centre = [
            np.angle((weight.sum(other) * np.exp(2j * np.pi * np.arange(size) / size)).sum()) / (2 * np.pi) * size
            for size, other in ((width, 0), (height, 1))
        ]
        x = (np.arange(width) - centre[0] + width / 2) % width - width / 2
        y = ((np.arange(height) - centre[1] + height / 2) % height - height / 2)[:, None]
        moving = weight > 0.2 * weight.max()
        rows = np.stack([gx[moving], gy[moving], (x * gy - y * gx)[moving] / 10], axis=1)
        found.append(np.linalg.lstsq(rows, -dt[moving], rcond=None)[0])
    return np.median(found, axis=0)


def test_motion_tells_the_class(clips: list[np.ndarray]) -> None:
    guesses = []
    for clip in clips:
        strengths = motion(clip)
        axis = np.abs(strengths).argmax()
        moves = np.sign(strengths[axis]) * np.eye(3)[axis]
        guesses.append([tuple(moves) == way for way in action.MOTIONS.values()].index(True))
    assert (np.array(guesses) == LABELS).mean() > 0.8


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


def test_what_is_decoded_is_what_was_drawn() -> None:
    images = action.video(0, "val", 4, 64)
    clip = decoded(action.encoded(images))
    drawn = np.stack([np.asarray(image) for image in images]) / 255
    assert clip.shape == drawn.shape
    assert np.abs(clip - drawn).mean() < 0.03  # colours are halved in space, and coded


def test_six_in_a_row_hold_each_class_once() -> None:
    assert sorted(action.label(index) for index in range(30, 36)) == list(range(6)) and len(action.NAMES) == 6
    assert list(action.NAMES) == sorted(action.NAMES)
