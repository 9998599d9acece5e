"""Clips from videos against plain PyAV and against torchcodec: 16 frames in a row, the file opened each time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from benchmarks.photographs import photograph
from benchmarks.settings import Settings
from benchmarks.timing import Result, interleaved
from tdaf.media.clip import read_clip

PLAIN, OURS, TORCHCODEC = "plain PyAV", "ours", "torchcodec"
ROUNDS, FRAMES, RATE = 12, 16, 30
LENGTH, WIDTH, HEIGHT = 300, 340, 256  # what most people's Kinetics is: ten seconds, short side 256
STARTS = range(3, LENGTH - FRAMES, 47)  # all over a group of 250 frames, and of 12
Read = Callable[[str, int], Tensor]


def clips(settings: Settings) -> dict[str, Result]:
    """Clips/s of ours / of each peer, at a key frame every 250 frames and every 12. All give uint8 RGB (T, 3, H, W)."""
    found: dict[str, Result] = {}
    readers = {PLAIN: _plain, OURS: _ours}
    torchcodec = _torchcodec()
    if torchcodec is not None:
        readers[TORCHCODEC] = torchcodec
    with tempfile.TemporaryDirectory() as folder:
        for gop in (250, 12):
            path = str(Path(folder) / f"{gop}.mp4")
            size = _write(path, gop)
            epochs = {name: _all_starts(read, path) for name, read in readers.items()}
            times = interleaved(epochs, settings.rounds(ROUNDS), torch.device("cpu"))
            note = f"{LENGTH} frames of {WIDTH}x{HEIGHT} in {size / 1000:.0f} KB"
            for key, peer in ((f"clips_{gop}", PLAIN), (f"clips_{gop}_torchcodec", TORCHCODEC)):
                if peer not in readers:
                    found[key] = Result(None, note="torchcodec is not installed, or does not find FFmpeg")
                    continue
                absolute = {name: f"{len(STARTS) / times.median(name):.1f} clips/s" for name in (OURS, peer)}
                found[key] = times.result(peer, OURS, absolute, note)
    return found


def _all_starts(read: Read, path: str) -> Callable[[], object]:
    return lambda: [read(path, start) for start in STARTS]


def _ours(path: str, start: int) -> Tensor:
    return read_clip(path, range(start, start + FRAMES))


def _plain(path: str, start: int) -> Tensor:
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


def _torchcodec() -> Read | None:
    """With one thread, as ours; without its scan of the whole file, as ours. None where it cannot be used."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError):  # the last two where it finds no FFmpeg
        return None

    def read(path: str, start: int) -> Tensor:
        decoder = VideoDecoder(path, seek_mode="approximate", num_ffmpeg_threads=1)
        return decoder.get_frames_in_range(start, start + FRAMES).data

    return read


def _write(path: str, gop: int) -> int:
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
