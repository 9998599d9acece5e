"""Clips from videos against plain PyAV and against torchcodec: 16 frames in a row, the file opened each time."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.photographs import photograph
from benchmarks.settings import Settings
from benchmarks.timing import Result, Times, interleaved
from tdaf.media.clip import read_clip

PLAIN, OURS, TORCHCODEC = "plain PyAV", "ours", "torchcodec"
ROUNDS, FRAMES, RATE = 12, 16, 30
LENGTH, WIDTH, HEIGHT = 300, 340, 256  # what most people's Kinetics is: ten seconds, short side 256
STARTS = range(3, LENGTH - FRAMES, 47)  # all over a group of 250 frames, and of 12
ROUND_A_WORKER, BATCH, CROP = 3, 2, 112
CPU = torch.device("cpu")
Read = Callable[[str, int], Tensor]


@dataclass(frozen=True)
class Cut(Dataset):
    """Clips of one video, of which the middle goes on, as training's crops do: uint8 (T, CROP, CROP, 3)."""

    read: Read
    path: str
    starts: list[int]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Tensor:
        top, left = (HEIGHT - CROP) // 2, (WIDTH - CROP) // 2
        frames = self.read(self.path, self.starts[index]).permute(0, 2, 3, 1)  # as they lie in memory
        return frames[:, top : top + CROP, left : left + CROP].contiguous()


def clips(settings: Settings) -> dict[str, Result]:
    """Clips/s of ours / of each peer, at a key frame every 250 frames and every 12: with a worker process a core; in
    one process; and in one process by the seconds that all cores together worked."""
    found: dict[str, Result] = {}
    readers: dict[str, Read] = {PLAIN: plain, OURS: ours}
    if _has_torchcodec():
        readers[TORCHCODEC] = torchcodec
    rounds = settings.rounds(ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        for gop in (250, 12):
            path = str(Path(folder) / f"{gop}.mp4")
            note = f"{LENGTH} frames of {WIDTH}x{HEIGHT} in {write(path, gop) / 1000:.0f} KB"
            loaders, count = _loaders(readers, path)
            found |= _compared(f"clips_{gop}", interleaved(loaders, rounds, CPU), count, note)
            calls = {name: _all_starts(read, path) for name, read in readers.items()}
            found |= _compared(f"clips_one_{gop}", interleaved(calls, rounds, CPU), len(STARTS), note)
            found |= _compared(f"clips_work_{gop}", _work(calls, rounds), len(STARTS), note)
    return found


def _compared(key: str, times: Times, count: int, note: str) -> dict[str, Result]:
    """count: of the clips that a candidate reads in a call."""
    found = {}
    for name, peer in ((key, PLAIN), (f"{key}_torchcodec", TORCHCODEC)):
        if peer not in times.seconds:
            found[name] = Result(None, note="torchcodec is not installed, or does not find FFmpeg")
            continue
        absolute = {each: f"{count / times.median(each):.1f} clips/s" for each in (OURS, peer)}
        found[name] = times.result(peer, OURS, absolute, note)
    return found


def _work(calls: dict[str, Callable[[], object]], rounds: int) -> Times:
    """In turns as `interleaved` has them, but seconds of all cores together that this process worked: what other
    programs do hardly counts, and more threads are not more speed."""
    times = Times(list(calls))
    for number in range(rounds):
        for name in times.order if number % 2 == 0 else times.order[::-1]:
            start = time.process_time()
            calls.get(name, calls[times.base])()
            times.add(name, time.process_time() - start)
    return times


def _loaders(readers: dict[str, Read], path: str) -> tuple[dict[str, Callable[[], object]], int]:
    """Each reads all starts several times over in PyTorch's DataLoader, with a worker a core that is kept from call to
    call and idle while another candidate is timed. And the number of these clips."""
    workers = len(os.sched_getaffinity(0))
    starts = np.random.default_rng(0).permutation(list(STARTS) * (ROUND_A_WORKER * workers)).tolist()

    def loader(read: Read) -> Callable[[], object]:
        batches = DataLoader(Cut(read, path, starts), BATCH, num_workers=workers, persistent_workers=True)
        return lambda: [len(batch) for batch in batches]

    return {name: loader(read) for name, read in readers.items()}, len(starts)


def _all_starts(read: Read, path: str) -> Callable[[], object]:
    return lambda: [read(path, start) for start in STARTS]


def ours(path: str, start: int) -> Tensor:
    """uint8 RGB (T, 3, H, W), as from each of the three."""
    return read_clip(path, range(start, start + FRAMES))


def plain(path: str, start: int) -> Tensor:
    """As most training code has it: seek, decode with the default settings, one array a frame."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        begin = round(start / RATE / stream.time_base)
        container.seek(begin, stream=stream)
        frames = []
        for frame in container.decode(stream):
            if frame.pts >= begin:
                frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == FRAMES:
                break
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def torchcodec(path: str, start: int) -> Tensor:
    """With one thread, as ours; without its scan of the whole file, as ours."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, seek_mode="approximate", num_ffmpeg_threads=1)
    return decoder.get_frames_in_range(start, start + FRAMES).data


def _has_torchcodec() -> bool:
    try:
        from torchcodec.decoders import VideoDecoder  # noqa: F401
    except (ImportError, RuntimeError, OSError):  # the last two where it finds no FFmpeg
        return False
    return True


def write(path: str, gop: int) -> int:
    """A view that wanders over a photograph, with a patch that moves across it, as h264. Returns the size in bytes."""
    ground = photograph(HEIGHT + 120, WIDTH + 160, np.random.default_rng(0))
    patch = photograph(60, 60, np.random.default_rng(1))
    options = {"crf": "23", "preset": "medium", "g": str(gop)}
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(LENGTH):
            top, left = int(60 + 50 * np.sin(number / 20)), int(80 + 70 * np.cos(number / 17))
            pixels = ground[top : top + HEIGHT, left : left + WIDTH].copy()
            across = 3 * number % (WIDTH - 60)
            pixels[50:110, across : across + 60] = patch
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    return Path(path).stat().st_size
