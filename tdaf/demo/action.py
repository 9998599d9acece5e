"""Demo data for action recognition: videos in Kinetics' layout, of one figure that moves or turns among still clutter.

The class is the motion alone, and no single frame shows it. Everything is drawn without knowledge of the class, with
the figure's pose at one random moment; the class says how it came there and goes on. What leaves at a side comes in
again at the other, so that at every moment all places, and all angles, are equally likely in every class. A clip
played backwards is of another class, and so, mostly, is a mirrored one: to train with flips would teach the wrong
thing."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from tdaf.demo import scene
from tdaf.demo.scene import Rng

# (right, down, clockwise): of the figure's pace and spin. As they are sorted, since folders are.
MOTIONS = {
    "moving down": (0, 1, 0),
    "moving left": (-1, 0, 0),
    "moving right": (1, 0, 0),
    "moving up": (0, -1, 0),
    "turning anticlockwise": (0, 0, -1),
    "turning clockwise": (0, 0, 1),
}
NAMES: tuple[str, ...] = tuple(MOTIONS)
FIGURES = tuple(name for name in scene.SHAPES if name not in ("circle", "ring", "hexagon"))  # whose turns can be seen
FPS = Fraction(25)


def label(index: int) -> int:
    """The class of sample `index`; every run of six samples holds each class once."""
    return index % len(NAMES)


def poses(rng: Rng, motion: str, width: int, height: int, frames: int) -> np.ndarray:
    """(frames, 3) float64: the figure's place in pixels (x, y), within the picture, and its angle in degrees."""
    right, down, clockwise = MOTIONS[motion]
    moment, pace, spin = rng.integers(frames), rng.uniform(0.02, 0.035) * min(width, height), rng.uniform(6, 11)
    there = rng.uniform(0, (width, height, 360))
    step = np.array([right * pace, down * pace, clockwise * spin])
    return (there + (np.arange(frames) - moment)[:, None] * step) % (width, height, 360)


def pictures(rng: Rng, motion: str, width: int, height: int, frames: int) -> Iterator[Image.Image]:
    """The frames of one video, RGB."""
    path = poses(rng, motion, width, height, frames)
    short = min(width, height)
    figure = scene.outline(FIGURES[rng.integers(len(FIGURES))], rng)
    figure = scene.fit(figure, short * short * rng.uniform(0.1, 0.16))
    figure -= figure.mean(axis=0)  # what it turns about
    ground = scene.ground_colours(rng)
    colours = scene.figure_colours(rng, ground)
    paint = scene.texture(rng, colours, width, height)
    still = scene.texture(rng, ground, width, height)
    reach = 0.28 * short
    scene.clutter(rng, still, int(rng.integers(6, 16)), reach, np.concatenate([ground, colours]))
    front = scene.fragments(rng, (width, height), int(rng.integers(0, 4)), 0.6 * reach, ground)
    still = scene.grain(rng, still, rng.uniform(2, 8))
    for x, y, degrees in path:
        image = still.copy()
        turned = figure @ scene.rotation(math.radians(degrees))
        for across in (-width, 0, width):
            for down in (-height, 0, height):
                scene.paste(image, turned + (x + across, y + down), paint)
        scene.draw(image, front)
        yield image


def video(seed: int, split: str, index: int, size: int) -> list[Image.Image]:
    """The frames of sample `index`: 24 to 40, with a short side of 0.9 to 1.1 of `size` and even numbers of pixels."""
    rng = scene.generator(seed, split, index)
    width, height = (side // 2 * 2 for side in scene.frame(rng, size, 1.3))
    return list(pictures(rng, NAMES[label(index)], width, height, int(rng.integers(24, 41))))


def identifier(split: str, index: int) -> str:
    """Eleven characters that stand for the video's name on YouTube."""
    return f"demo{split[0]}{index:06d}"


def write_kinetics(folder: Path, seed: int, train: int, val: int, size: int) -> None:
    """`train/<class>/<id>_000000_000010.mp4` and `val/...` (h264), with the annotations of the official CSV files,
    `train.csv` and `val.csv`."""
    for split, count in (("train", train), ("val", val)):
        for name in NAMES:
            (folder / split / name).mkdir(parents=True)
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
            for index in range(count):
                name, key = NAMES[label(index)], identifier(split, index)
                content = encoded(video(seed, split, index, size))
                (folder / split / name / f"{key}_000000_000010.mp4").write_bytes(content)
                rows.writerow([name, key, 0, 10, split])


def encoded(images: list[Image.Image]) -> bytes:
    """An mp4 file of the images, the same bytes whenever the same encoder writes it."""
    import av  # not where nothing is drawn

    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "18", "g": "12"})
        stream.width, stream.height = images[0].size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # with more, the bytes depend on their number
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
