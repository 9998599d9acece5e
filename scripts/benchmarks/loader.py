"""The image loader against PIL with torchvision's v1 transforms and against timm's loader, one worker each."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision import transforms as v1

from benchmarks.photographs import write_photographs
from benchmarks.settings import Settings
from benchmarks.timing import Result, Times
from tasks.classification.folder import ImageFolder
from tasks.classification.task import Classification
from tasks.classification.transforms import imagenet_train
from tdaf.engine.data import EvaluationOrder, Loader

V1, OURS, TIMM = "PIL + v1 transforms", "ours", "timm"
ROUNDS, BATCH, SIZE, SCALE = 20, 32, 224, (0.08, 1.0)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def reading(settings: Settings) -> dict[str, Result]:
    """Images/s of ours / of each peer: read, decode, random resized crop, flip, collate, on to the main process.

    v1 also makes floats and normalises in the worker, as its users do; ours and timm's leave that to the device.
    """
    with tempfile.TemporaryDirectory() as folder:
        size = write_photographs(Path(folder), settings.images)
        epochs = {V1: _v1(folder), OURS: _ours(folder)}
        timm = _timm(folder)
        if timm is not None:
            epochs[TIMM] = timm
        times = epoch_times(epochs, settings.rounds(ROUNDS))
    note = f"{settings.images} files of {size / 1000:.0f} KB"

    def faster(peer: str) -> Result:
        absolute = {name: f"{1 / times.median(name):.0f} images/s" for name in (OURS, peer)}
        # time of the peer / our time is our images/s / the peer's
        return times.result(peer, OURS, absolute, note)

    missing = Result(None, note="timm is not installed")
    return {"loader": faster(V1), "loader_timm": faster(TIMM) if timm is not None else missing}


def epoch_times(epochs: dict[str, Callable[[], Iterable]], rounds: int) -> Times:
    """Seconds an image. An epoch is timed from its first batch to its last: without the worker's start, and with no
    worker at work while another candidate is timed."""
    times = Times(list(epochs))
    for make in epochs.values():
        _epoch(make())
    for number in range(rounds):
        for name in times.order if number % 2 == 0 else times.order[::-1]:
            times.add(name, _epoch(epochs.get(name, epochs[times.base])()))
    return times


def _epoch(batches: Iterable) -> float:
    reading = iter(batches)
    next(reading)
    start, count = time.perf_counter(), 0
    for _ in reading:
        count += 1
    return (time.perf_counter() - start) / (count * BATCH)


def _ours(folder: str) -> Callable[[], Iterable]:
    transform = imagenet_train(size=SIZE, short_side=None, scale=SCALE)
    task = Classification(ImageFolder(folder), transform, {"1crop": transform}, MEAN, STD)
    images = task.dataset("train")
    return lambda: Loader(images, EvaluationOrder(len(images), BATCH), seed=0, workers=1)


def _v1(folder: str) -> Callable[[], Iterable]:
    steps = [v1.RandomResizedCrop(SIZE, SCALE), v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(MEAN, STD)]
    images = datasets.ImageFolder(f"{folder}/train", v1.Compose(steps))
    return lambda: DataLoader(images, BATCH, num_workers=1)


def _timm(folder: str) -> Callable[[], Iterable] | None:
    """timm's loader without its last step, which normalises on the device; None where timm is not installed."""
    try:
        from timm.data import ImageDataset, create_loader
    except ImportError:
        return None
    images = ImageDataset(f"{folder}/train")
    loader = create_loader(
        images,
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        scale=SCALE,
        color_jitter=0.0,
        interpolation="bilinear",
        num_workers=1,
        persistent_workers=False,
        device=torch.device("cpu"),
    )
    return lambda: loader.loader
