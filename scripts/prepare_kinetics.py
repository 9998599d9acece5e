"""Makes a set of videos small and quick to read clips from: short side 256, and a key frame every 12 frames.

    python scripts/prepare_kinetics.py root=DIR out=DIR [short_side=256] [gop=12] [crf=20] [workers=N] [tar=true]

Every video below ROOT becomes an h264 mp4 at the same place below OUT, without sound, with its own times; what is
smaller already is not enlarged, and turns and mirroring that the file asks for are made. Annotation files (csv, txt)
are copied. Archives (part_0.tar.gz, as Kinetics is delivered, also .tgz, .tar and .zip) count as what is in them at the
place where they lie, and are never unpacked: a few videos at a time are in OUT, or none, where they can be read in
place. A video that is damaged or cut off is named and left out. It may be stopped at any moment: run again, it
goes on, and what is finished is left as it is. short_side: pixels. gop: frames from one key frame to the next. crf:
x264's quality, 0 to 51, less is better. workers: processes, as many as cores. Exit codes: 0 all done; 1 some could not
be; 2 a mistake. tar=true: each folder of OUT, train/ say, is a plain tar instead, train.tar, in the order in which the
videos are done; one of them at a time is a file. Training reads it as it is.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

import av
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from tdaf.cli.script import Positive, main
from tdaf.errors import RunError, UnreadableSample, UserError
from tdaf.media import archive
from tdaf.media.files import MOVING, files_below, left_out
from tdaf.media.tar import Writer, clean
from tdaf.media.video import AS_IT_LIES, decode, frame_rate, opened, orientation, promised_frames, upright

Side = Annotated[int, "a whole number, 16 or more", lambda value: value >= 16]
Quality = Annotated[int, "a whole number from 0 to 51", lambda value: 0 <= value <= 51]
NOTES = (".csv", ".txt")
PACKED, COMPRESSED = (".tar", ".zip"), (".tar.gz", ".tgz")
COPIES = ".copies"  # folder in OUT of what is read of compressed archives, or written on its way into a tar
_CONVERTER = VideoReformatter()


class Job(NamedTuple):
    """short_side in pixels, gop in frames; crf: x264's quality, less is better."""

    source: Path
    target: Path
    short_side: int
    gop: int
    crf: int
    member_of: Path | None = None  # the compressed archive that the source was copied out of, to be deleted when done

    @property
    def shown(self) -> str:
        return f"{self.member_of}: {self.target.stem}" if self.member_of else str(self.source)


class Tars(ExitStack):
    """Of every folder in `out` one tar, which goes on where it was."""

    def __init__(self, out: Path) -> None:
        super().__init__()
        self._out, self._writers = out, {}

    def __contains__(self, place: Path) -> bool:
        writer, name = self._of(place)
        return name in writer.names

    def add(self, place: Path, content: BinaryIO, size: int) -> None:
        writer, name = self._of(place)
        writer.add(name, content, size)

    def _of(self, place: Path) -> tuple[Writer, str]:
        """The tar that a file would be in, which would lie at `place`, and its name there."""
        folder, _, name = place.relative_to(self._out).as_posix().partition("/")
        path = self._out / f"{folder}.tar"
        if not name:
            raise UserError(f"tar=true: {folder} lies in no folder, whose tar it could be in; put the videos into one")
        if folder not in self._writers:
            if (self._out / folder).is_dir():
                raise UserError(f"{self._out / folder} is there, and would be read instead of {path}: delete it")
            try:
                self._writers[folder] = self.enter_context(Writer(path, go_on=True))
            except ValueError as error:
                raise UserError(f"{path}: {error}") from error
        return self._writers[folder], name


def prepare(
    *,
    root: Path,
    out: Path,
    short_side: Side = 256,
    gop: Positive = 12,
    crf: Quality = 20,
    workers: Positive | None = None,
    tar: bool = False,
) -> int:
    """Returns the exit code; the settings are those of the command line."""
    if not root.is_dir():
        raise UserError(f"root={root}: no such folder")
    if out.resolve().is_relative_to(root.resolve()) or root.resolve().is_relative_to(out.resolve()):
        raise UserError(f"out={out} lies in root, or root in it: give a folder of its own")
    bad: list[Job] = []
    try:
        with Tars(out) as tars:
            done = tars.__contains__ if tar else Path.exists
            how, written = (short_side, gop, crf), out / COPIES if tar else out
            sources, notes, compressed = _found(root, out)
            jobs = [
                Job(source, written / place.relative_to(out), *how)
                for place, source in sources.items()
                if not done(place)
            ]
            before = len(sources) - len(jobs)
            print(f"{len(sources)} videos, {before} of them done before", flush=True)
            packed = {_top(place, out) for place in [*sources, *(out / path.relative_to(root) for path in compressed)]}
            for place, source in notes.items():
                is_packed = tar and _top(place, out) in packed
                if not (place in tars if is_packed else place.exists()):
                    content = archive.read(source).tobytes()
                    if is_packed:
                        tars.add(place, io.BytesIO(content), len(content))
                    else:
                        place.parent.mkdir(parents=True, exist_ok=True)
                        place.write_bytes(content)
            streams = (
                _streamed(path, out / path.parent.relative_to(root), out, written, how, done) for path in compressed
            )
            number, total = 0, "" if compressed else f" of {len(jobs)}"
            jobs_and_streams = chain(jobs, chain.from_iterable(streams))
            for number, (job, fault) in enumerate(_done(jobs_and_streams, workers or len(os.sched_getaffinity(0))), 1):
                if job.member_of:
                    job.source.unlink(missing_ok=True)
                if fault is not None:
                    bad.append(job)
                    print(f"left out: {job.shown}: {fault}", flush=True)
                elif tar:
                    with job.target.open("rb") as video:
                        tars.add(out / job.target.relative_to(written), video, job.target.stat().st_size)
                    job.target.unlink()
                if number % 100 == 0 or number == len(jobs):
                    print(f"{number}{total} videos", flush=True)
    except OSError as error:
        raise RunError(f"{error}; run the same command again to go on") from error
    finally:
        shutil.rmtree(out / COPIES, ignore_errors=True)
    for folder, count in Counter(job.member_of or job.source.parent for job in bad).most_common():
        print(f"{count:6d} left out in {folder}")
    print(f"{before + number - len(bad)} videos in {out}, {len(bad)} left out")
    return 1 if bad else 0


def encode(job: Job) -> str | None:
    """Writes one video, which gets its name when it is whole. Returns what is wrong with the source, else None."""
    job.target.parent.mkdir(parents=True, exist_ok=True)
    part = job.target.with_name(f".{job.target.name}.part")
    try:
        promised = promised_frames(job.source)
        with opened(job.source) as (source, stream):
            _write(job, source, stream, promised, part)
        part.replace(job.target)
    except UnreadableSample as error:
        return str(error).removesuffix(f" ({job.source})")
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror, str(job.target)) from error
    finally:
        part.unlink(missing_ok=True)
    return None


def _top(place: Path, out: Path) -> str:
    return place.relative_to(out).parts[0]


def _found(root: Path, out: Path) -> tuple[dict[Path, Path], dict[Path, Path], list[Path]]:
    """The source of each video, and of each annotation file, by its place below `out`, in the order of their paths; and
    the compressed archives."""
    sources: dict[Path, Path] = {}
    notes: dict[Path, Path] = {}
    names, others = files_below(root, (*MOVING, *NOTES, *PACKED, *COMPRESSED))
    places = {root / name: Path(name) for name in names if not name.lower().endswith(PACKED)}
    for path in (root / name for name in names if name.lower().endswith(PACKED)):
        archive.check_whole(path, 0)
        members, more = files_below(path, (*MOVING, *NOTES))
        places |= {path / member: path.parent.relative_to(root) / member for member in members}
        others += more
    for source, place in places.items():
        name, target = place.name.lower(), out / place
        if name.endswith(MOVING):
            target = target.with_suffix(".mp4")
            if target in sources:
                raise UserError(f"{sources[target]} and {source} would both become {target}; rename one")
            sources[target] = source
        elif name.endswith(NOTES):
            notes[target] = source
    for note, count in left_out(others, "videos").items():
        print(f"{count} {note}")
    compressed = [source for source in places if source.name.lower().endswith(COMPRESSED)]
    if not sources and not compressed:
        raise UserError(f"root={root}: there is no video below it ({', '.join(MOVING)})")
    return sources, notes, compressed


def _streamed(
    path: Path, folder: Path, out: Path, written: Path, how: tuple[int, int, int], done: Callable[[Path], bool]
) -> Iterator[Job]:
    """The videos of a compressed tar that are not done, one after the other, each copied out of it."""
    (out / COPIES).mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(path, "r|gz") as members:
            for number, member in enumerate(members):
                if not (member.isfile() and member.name.lower().endswith(MOVING)):
                    continue
                place = (folder / os.fsdecode(clean(os.fsencode(member.name)))).with_suffix(".mp4")
                if done(place):
                    continue
                copy = out / COPIES / f"{path.name}-{number}{Path(member.name).suffix}"
                with copy.open("wb") as file:
                    shutil.copyfileobj(members.extractfile(member), file)
                yield Job(copy, written / place.relative_to(out), *how, path)
    except UserError:
        raise
    except (tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        raise RunError(f"{path} is damaged, cut off or no archive ({error}); bring it again, then go on") from error


def _done(jobs: Iterator[Job], workers: int) -> Iterator[tuple[Job, str | None]]:
    """Each job when it is done, with what was wrong. A file on which a process dies is named too."""
    more = True
    while more:
        # spawn: a process forked beside threads may hang
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            running: dict[Future, Job] = {}
            try:
                while more or running:
                    while more and len(running) < 2 * workers:
                        job = next(jobs, None)
                        more = job is not None
                        if job is not None:
                            running[pool.submit(encode, job)] = job
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        fault = future.result()
                        yield running.pop(future), fault
            except BrokenProcessPool:
                if workers == 1 and len(running) == 1:
                    yield running.popitem()[1], "the process that read it died"
                else:
                    # one by one, to find out which of them it was
                    for job in running.values():
                        yield from _done(iter([job]), 1)


def _write(
    job: Job, source: av.container.InputContainer, stream: av.VideoStream, promised: int | None, part: Path
) -> None:
    """Raises UnreadableSample for a damaged source, av.FFmpegError for a full disk."""
    rate = frame_rate(stream)
    settings = {"preset": "medium", "crf": str(job.crf), "g": str(job.gop), "threads": "1"}
    with av.open(f"file:{part}", "w", format="mp4", options={"movflags": "faststart"}) as sink:
        video = sink.add_stream("libx264", rate=rate, options=settings)
        video.pix_fmt = "yuv420p"
        last = None
        for frame in decode(job.source, source, stream, promised):
            frame = _turned(frame)
            if last is None:
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
        sink.mux(video.encode())


def _turned(frame: av.VideoFrame) -> av.VideoFrame:
    """As it is to be shown."""
    if orientation(frame) == AS_IT_LIES:
        return frame
    turned = av.VideoFrame.from_ndarray(upright(frame, frame.width, frame.height), "rgb24")
    turned.pts, turned.time_base = frame.pts, frame.time_base
    return turned


def _size(frame: av.VideoFrame, short_side: int) -> tuple[int, int]:
    """(width, height) to write: even, as 4:2:0 wants them, and not above the frame's own."""
    short = min(frame.width, frame.height)
    side = min(short_side, short)
    return tuple(max(2, length * side // short // 2 * 2) for length in (frame.width, frame.height))


if __name__ == "__main__":
    sys.exit(main(prepare, __doc__))
