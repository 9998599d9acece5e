"""Makes a set of videos small and quick to read clips from: short side 256, and a key frame every 12 frames.

    python scripts/prepare_kinetics.py --root DIR --out DIR [--short-side 256] [--gop 12] [--crf 20] [--workers N]

Every video below ROOT becomes an h264 mp4 at the same place below OUT, without sound, with its own times; what is
smaller already is not enlarged, and a turn that the file asks for is made. Annotation files (csv, txt) are copied. A
video that is damaged or cut off is named and left out. It may be stopped at any moment: run again, it goes on, and
what is finished is left as it is. Exit codes: 0 all done; 1 some could not be; 2 a mistake.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from tdaf.errors import UnreadableSample, UserError
from tdaf.media.container import opened
from tdaf.media.cut import missing_bytes
from tdaf.media.files import VIDEOS

NOTES = (".csv", ".txt")
USUAL_RATE = Fraction(25)  # where a file does not say
_CONVERTER = VideoReformatter()


class Job(NamedTuple):
    """short_side in pixels, gop in frames; crf: x264's quality, less is better."""

    source: Path
    target: Path
    short_side: int
    gop: int
    crf: int


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return prepare(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}; run the same command again to go on", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the videos as they are")
    parser.add_argument("--out", type=Path, required=True, help="where they go, later data.root")
    parser.add_argument("--short-side", type=int, default=256, help="pixels (default: 256)")
    parser.add_argument("--gop", type=int, default=12, help="frames from one key frame to the next (default: 12)")
    parser.add_argument("--crf", type=int, default=20, help="x264's quality, 0 to 51, less is better (default: 20)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: cores)")
    return parser


def prepare(options: argparse.Namespace) -> int:
    root, out = options.root.expanduser(), options.out.expanduser()
    if not root.is_dir():
        raise UserError(f"--root {options.root}: no such folder")
    if out.resolve().is_relative_to(root.resolve()) or root.resolve().is_relative_to(out.resolve()):
        raise UserError(f"--out {options.out} lies in --root, or --root in it: give a folder of its own")
    limits = {"short_side": (16, None), "gop": (1, None), "crf": (0, 51), "workers": (1, None)}
    for name, (least, most) in limits.items():
        value = getattr(options, name)
        if value < least or (most is not None and value > most):
            bounds = f"{least} or more" if most is None else f"{least} to {most}"
            raise UserError(f"--{name.replace('_', '-')} {value}: give {bounds}")
    jobs = _jobs(root, out, options)
    todo = [job for job in jobs if not job.target.exists()]
    print(f"{len(jobs)} videos, {len(jobs) - len(todo)} of them done before", flush=True)
    bad: dict[Path, str] = {}
    for number, (job, fault) in enumerate(_done(todo, options.workers), 1):
        if fault is not None:
            bad[job.source] = fault
            print(f"left out: {job.source}: {fault}", flush=True)
        if number % 100 == 0 or number == len(todo):
            print(f"{number} of {len(todo)} videos", flush=True)
    for folder, count in Counter(path.parent for path in bad).most_common():
        print(f"{count:6d} left out in {folder}")
    print(f"{len(jobs) - len(bad)} videos in {out}, {len(bad)} left out")
    return 1 if bad else 0


def _jobs(root: Path, out: Path, options: argparse.Namespace) -> list[Job]:
    """All videos, by their paths; annotation files are copied on the way."""
    jobs: dict[Path, Job] = {}
    for folder, inside, files in os.walk(root):
        inside.sort()
        for name in sorted(files):
            source = Path(folder, name)
            target = out / source.relative_to(root)
            if name.lower().endswith(VIDEOS):
                target = target.with_suffix(".mp4")
                if target in jobs:
                    raise UserError(f"{jobs[target].source} and {source} would both become {target}; rename one")
                jobs[target] = Job(source, target, options.short_side, options.gop, options.crf)
            elif name.lower().endswith(NOTES) and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    if not jobs:
        raise UserError(f"--root {options.root}: there is no video below it ({', '.join(VIDEOS)})")
    return list(jobs.values())


def _done(jobs: list[Job], workers: int) -> Iterator[tuple[Job, str | None]]:
    """Each job when it is done, with what was wrong. A file on which a process dies is named too."""
    left = list(jobs)
    while left:
        # spawn: a process forked beside threads may hang
        with ProcessPoolExecutor(min(workers, len(left)), get_context("spawn")) as pool:
            running: dict[Future, Job] = {}
            try:
                while left or running:
                    while left and len(running) < 2 * workers:
                        job = left.pop(0)
                        running[pool.submit(encode, job)] = job
                    for future in wait(running, return_when="FIRST_COMPLETED").done:
                        fault = future.result()
                        yield running.pop(future), fault
            except BrokenProcessPool:
                if workers == 1 and len(running) == 1:
                    yield running.popitem()[1], "the process that read it died"
                else:
                    # one by one, to find out which of them it was
                    for job in running.values():
                        yield from _done([job], 1)


def encode(job: Job) -> str | None:
    """Writes one video, which gets its name when it is whole. Returns what is wrong with the source, else None."""
    job.target.parent.mkdir(parents=True, exist_ok=True)
    part = job.target.with_name(f".{job.target.name}.part")
    try:
        missing = missing_bytes(job.source)
        with opened(job.source) as (source, stream):
            frames = _write(job, source, stream, part)
        if missing:
            return f"cut off: {missing} bytes and all after frame {frames} are missing"
        if not frames:
            return "not one frame in it"
        part.replace(job.target)
    except UnreadableSample as error:
        return str(error).removesuffix(f" ({job.source})")
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror, str(job.target)) from error
    finally:
        part.unlink(missing_ok=True)
    return None


def _write(job: Job, source: av.container.InputContainer, stream: av.VideoStream, part: Path) -> int:
    """The number of frames written. Raises UnreadableSample for a damaged source, OSError for a full disk."""
    rate = stream.average_rate or stream.guessed_rate or USUAL_RATE
    settings = {"preset": "medium", "crf": str(job.crf), "g": str(job.gop), "threads": "1"}
    written = 0
    with av.open(f"file:{part}", "w", format="mp4", options={"movflags": "faststart"}) as sink:
        video = sink.add_stream("libx264", rate=rate, options=settings)
        video.pix_fmt = "yuv420p"
        for frame in _upright(job, source, stream):
            if not written:
                video.width, video.height = _size(frame, job.short_side)
                unit = 1 / Fraction(rate) if frame.pts is None else frame.time_base
                video.codec_context.time_base = unit
                last = -1 if frame.pts is None else frame.pts - 1
            size = {"width": video.width, "height": video.height}
            scaled = _CONVERTER.reformat(frame, **size, format="yuv420p", threads=1)
            # an encoder wants times that rise; where the file has none, or wrong ones, they are counted on
            last = last + 1 if frame.pts is None or frame.pts <= last else frame.pts
            scaled.pts, scaled.time_base = last, unit
            scaled.pict_type = PictureType.NONE  # else the encoder makes it what it was
            sink.mux(video.encode(scaled))
            written += 1
        if written:
            sink.mux(video.encode())
    return written


def _upright(job: Job, source: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """The frames, turned as they are to be shown."""
    frames = 0
    try:
        for packet in source.demux(stream):
            if packet.is_corrupt:
                raise UnreadableSample(f"damaged or cut off after {frames} frames")
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise UnreadableSample(f"frame {frames} is damaged")
                turns = round(frame.rotation / 90) % 4
                frames += 1
                yield _turned(frame, turns) if turns else frame
    except av.FFmpegError as error:
        raise UnreadableSample(f"damaged after {frames} frames: {error.strerror}") from error


def _size(frame: av.VideoFrame, short_side: int) -> tuple[int, int]:
    """(width, height) to write: even, as 4:2:0 wants them, and not above the frame's own."""
    short = min(frame.width, frame.height)
    side = min(short_side, short)
    return tuple(max(2, length * side // short // 2 * 2) for length in (frame.width, frame.height))


def _turned(frame: av.VideoFrame, turns: int) -> av.VideoFrame:
    pixels = np.rot90(_CONVERTER.reformat(frame, format="rgb24", threads=1).to_ndarray(), turns)
    upright = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
    upright.pts, upright.time_base = frame.pts, frame.time_base
    return upright


if __name__ == "__main__":
    sys.exit(main())
