"""Reading data, ours against what one would write otherwise: images, archives, clips; from files that are drawn here.

Each function measures one thing and returns it by the name under which the table of scripts/benchmark.py has it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets
from torchvision import transforms as v1

from benchmarks.timing import Settings, Times, in_turns, interleaved, now
from tdaf.cli import build
from tdaf.cli.compose import compose
from tdaf.engine.data import Loader
from tdaf.media.clip import read_clip

OURS, V1, TIMM = "ours", "PIL + torchvision v1 transforms", "timm's create_loader"
FOLDER, TAR, ZIP, DEFLATED = "folder", "tar", "stored zip", "deflated zip"
CACHED = "data.cache=ram, cache_side=256"  # filled by the first epoch, which is not timed
PYAV, TORCHCODEC = "plain PyAV", "torchcodec"
CPU = torch.device("cpu")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
ROUNDS, BATCH = 20, 32  # of the image loaders
CLIP_ROUNDS, FRAMES, RATE = 12, 16, 30
LENGTH, WIDTH, HEIGHT = 300, 340, 256  # what most people's Kinetics is: ten seconds, short side 256
STARTS = range(3, LENGTH - FRAMES, 47)  # all over a group of 250 frames, and of 12


def loader(settings: Settings) -> dict[str, Times]:
    """Read, decode, random resized crop, flip, collate, on to the main process; one worker each.

    v1 also makes floats and normalises in the worker, as its users do; ours and timm's leave that to the device.
    """
    with tempfile.TemporaryDirectory() as folder:
        size = write_photographs(Path(folder), settings.images)
        transform = ["task.train_transform.short_side=null", "task.train_transform.scale=[0.08,1.0]"]
        ours, cached = (
            build.task(compose(["task=imagenet", f"data.root={folder}", *transform, *more])).dataset("train")
            for more in ([], ["data.cache=ram", "data.cache_side=256"])
        )
        steps = [v1.RandomResizedCrop(224), v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(MEAN, STD)]
        plain = datasets.ImageFolder(f"{folder}/train", v1.Compose(steps))
        candidates: dict[str, Callable[[], Iterable]] = {
            V1: lambda: DataLoader(plain, BATCH, num_workers=1),
            OURS: lambda: our_loader(ours, range(settings.images)),
            CACHED: lambda: our_loader(cached, range(settings.images)),
        }
        with contextlib.suppress(ImportError):
            candidates[TIMM] = _timm(f"{folder}/train")
        times = epochs(candidates, settings)
    return {"loader": times.of(1, "images", f"{settings.images} files of {size / 1000:.0f} KB")}


def archives(settings: Settings) -> dict[str, Times]:
    """The same files in archives and in folders, as `loader` reads them; and in one process, by the seconds that it
    works, on which other programs have hardly an influence."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, FOLDER)
        size = write_photographs(source, settings.images)
        for form in (TAR, ZIP, DEFLATED):
            Path(folder, form).mkdir()
            Path(folder, form, "val").symlink_to(source / "val")
        shutil.make_archive(f"{folder}/{TAR}/train", "tar", source / "train")
        shutil.make_archive(f"{folder}/{DEFLATED}/train", "zip", source / "train")
        with zipfile.ZipFile(Path(folder, ZIP, "train.zip"), "w") as stored:
            for path in sorted(source.glob("train/*/*")):
                stored.write(path, path.relative_to(source / "train"))
        sets = {
            form: build.task(compose(["task=imagenet", f"data.root={folder}/{form}"])).dataset("train")
            for form in (FOLDER, TAR, ZIP, DEFLATED)
        }
        chosen, note = range(settings.images), f"{settings.images} files of {size / 1000:.0f} KB, in memory"

        def read(dataset: Any) -> None:
            torch.manual_seed(0)  # the same crops
            for index in chosen:
                dataset[index]

        loading = {form: partial(our_loader, dataset, chosen) for form, dataset in sets.items()}
        working = {form: partial(worked, partial(read, dataset)) for form, dataset in sets.items()}
        return {
            "archive_reading": epochs(loading, settings).of(1, "images", note),
            "archive_work": in_turns(working, settings.pairs or ROUNDS).of(len(chosen), "images", note),
        }


def clips(settings: Settings) -> dict[str, Times]:
    """16 frames in a row from a file that is opened each time, at a key frame every 250 frames and every 12: in
    PyTorch's DataLoader with a worker process a core; and in one process by the seconds that all cores together worked,
    on which other programs have hardly an influence, and where more threads are not more speed."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for gop in (250, 12):
            path = f"{folder}/{gop}.mp4"
            note = f"{LENGTH} frames of {WIDTH}x{HEIGHT} in {write_video(path, gop) / 1000:.0f} KB"
            readers = {PYAV: partial(plain_clip, path), OURS: partial(our_clip, path)}
            with contextlib.suppress(ImportError, RuntimeError, OSError):  # the last two where it finds no FFmpeg
                torchcodec_clip(path, 0)
                readers[TORCHCODEC] = partial(torchcodec_clip, path)
            for name, times in _clip_times(readers, settings).items():
                found[f"{name}_{gop}"] = times.of(times.count, "clips", note)
    return found


def _clip_times(readers: dict[str, Callable[[int], Tensor]], settings: Settings) -> dict[str, Times]:
    """readers: from a clip's first frame to the clip."""
    rounds, workers = settings.pairs or CLIP_ROUNDS, len(os.sched_getaffinity(0))
    starts = np.random.default_rng(0).permutation(list(STARTS) * (3 * workers)).tolist()

    def loading(read: Callable[[int], Tensor]) -> Callable[[], object]:
        # the workers are kept from call to call, and idle while another candidate is timed
        keep = {"num_workers": workers, "persistent_workers": True, "collate_fn": partial(centre_clips, read)}
        batches = DataLoader(starts, 2, **keep)
        return lambda: [len(batch) for batch in batches]

    loaders = {name: loading(read) for name, read in readers.items()}
    working = {
        name: partial(worked, lambda read=read: [read(start) for start in STARTS]) for name, read in readers.items()
    }
    return {
        "clips": interleaved(loaders, rounds, CPU).of(len(starts), "clips"),
        "clips_work": in_turns(working, rounds).of(len(STARTS), "clips"),
    }


def worked(call: Callable[[], object]) -> float:
    """Seconds that all threads of this process worked on a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def our_loader(dataset: Dataset, chosen: Sequence[int]) -> Iterable:
    """One epoch of the samples `chosen`, in this order."""
    order = [[(0, index) for index in chosen[first : first + BATCH]] for first in range(0, len(chosen), BATCH)]
    return Loader(dataset, order, seed=0, workers=1)


def _timm(folder: str) -> Callable[[], Iterable]:
    """timm's loader without its last step, which normalises on the device."""
    from timm.data import ImageDataset, create_loader

    same = {"is_training": True, "scale": (0.08, 1.0), "color_jitter": 0.0, "interpolation": "bilinear"}
    worker = {"num_workers": 1, "persistent_workers": False, "device": CPU}
    loader = create_loader(ImageDataset(folder), (3, 224, 224), BATCH, **same, **worker)
    return lambda: loader.loader


def epochs(candidates: dict[str, Callable[[], Iterable]], settings: Settings) -> Times:
    """Seconds an image. An epoch is timed from its first batch to its last: without the worker's start, and with no
    worker at work while another candidate is timed."""

    def epoch(make_batches: Callable[[], Iterable]) -> float:
        batches = iter(make_batches())
        next(batches)
        start = now(CPU)
        count = sum(1 for _ in batches)
        return (now(CPU) - start) / (count * BATCH)

    calls = {name: partial(epoch, make_batches) for name, make_batches in candidates.items()}
    for call in calls.values():
        call()
    return in_turns(calls, settings.pairs or ROUNDS)


def centre_clips(read: Callable[[int], Tensor], starts: list[int]) -> Tensor:
    """Clips of which the middle goes on, as training's crops do: uint8 (B, T, 112, 112, 3)."""
    top, left = (HEIGHT - 112) // 2, (WIDTH - 112) // 2
    clips = (read(start).permute(0, 2, 3, 1) for start in starts)  # as they lie in memory
    return torch.stack([frames[:, top : top + 112, left : left + 112] for frames in clips])


def our_clip(path: str, start: int) -> Tensor:
    """uint8 RGB (T, 3, H, W), as from each of the three."""
    return read_clip(Path(path), range(start, start + FRAMES))


def plain_clip(path: str, start: int) -> Tensor:
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


def torchcodec_clip(path: str, start: int) -> Tensor:
    """With one thread and without its scan of the whole file, as ours."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, seek_mode="approximate", num_ffmpeg_threads=1)
    return decoder.get_frames_in_range(start, start + FRAMES).data


def write_photographs(root: Path, count: int) -> float:
    """JPEG files of ImageNet's size and compressibility as train/ of an image folder with two classes; val/ is empty.
    Returns their mean size in bytes."""
    for split in ("train", "val"):
        for name in ("class0", "class1"):
            (root / split / name).mkdir(parents=True)
    generator, written = np.random.default_rng(0), 0
    sizes, qualities = ((375, 500), (333, 500), (500, 375), (375, 500), (400, 500)), (92, 95, 90)
    for number in range(count):
        path = root / "train" / f"class{number % 2}" / f"{number:04d}.JPEG"
        image = Image.fromarray(photograph(*sizes[number % len(sizes)], generator))
        image.save(path, quality=qualities[number % len(qualities)])
        written += path.stat().st_size
    return written / count


def photograph(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """Colour at four scales, the coarse ones strongest, some hard edges, and grain: uint8 (H, W, 3)."""
    image = torch.zeros(1, 3, height, width)
    for scale in (4, 8, 32, 128):
        coarse = generator.random((1, 3, max(2, height // scale), max(2, width // scale)), dtype=np.float32)
        image += F.interpolate(torch.from_numpy(coarse), size=(height, width), mode="bicubic") * scale**0.5
    image = (image - image.min()) / (image.max() - image.min()) * 255
    pixels = image[0].permute(1, 2, 0).numpy()
    for _ in range(6):
        top, left = generator.integers(0, height), generator.integers(0, width)
        tall, wide = generator.integers(max(1, height // 20), 1 + height // 2, 2)
        pixels[top : top + tall, left : left + wide] += generator.normal(0, 40, 3)
    pixels = pixels + generator.normal(0, 9.0, (height, width, 1))  # grain: brings a file to about 100 KB
    return pixels.clip(0, 255).astype(np.uint8)


def write_video(path: str, gop: int) -> int:
    """A view that wanders over a photograph, with a patch that moves across it, as h264. Returns the size in bytes."""
    ground = photograph(HEIGHT + 120, WIDTH + 160, np.random.default_rng(0))
    patch = photograph(60, 60, np.random.default_rng(1))
    with av.open(path, "w") as container:
        options = {"crf": "23", "preset": "medium", "g": str(gop)}
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
