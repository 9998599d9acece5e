"""Pose: the crop of a person and the loader around it against plain versions; TDAF's training step against the plain
network's."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.loader import BATCH, epoch_times
from benchmarks.networks import configured, milliseconds
from benchmarks.photographs import photograph, write_photographs
from benchmarks.settings import Settings
from benchmarks.timing import Result, interleaved
from tdaf.cli import build
from tasks.pose.augment import Augmentation
from tasks.pose.boxes import annotated
from tasks.pose.crop import affine, crop, framed, inverse, transform
from tasks.pose.data import Persons
from tasks.pose.heatmaps import encode
from tasks.pose.losses import heatmap_loss
from tasks.pose.network import PoseNetwork, deconvolved
from tasks.pose.skeleton import COCO
from tasks.pose.source import CocoKeypoints
from tdaf import measure
from tdaf.engine.data import EvaluationOrder, Loader
from tdaf.engine.precision import Precision
from tdaf.model.flows import TDAF
from tdaf.model.normalise import Normalise

OURS, PIL, OPENCV, PLAIN, ATTENDED = "ours", "PIL + NumPy", "OpenCV", "plain", "TDAF"
SIZE, MAPS, KEY_POINTS = (256, 192), (64, 48), len(COCO)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CROPS, CROP_ROUNDS, LOADER_ROUNDS, TRAINING_ROUNDS = 32, 20, 20, 12


def cropping(settings: Settings) -> dict[str, Result]:
    """Crops/s and images/s of ours / of each peer, and the training step of TDAF / plain."""
    return {**_crops(settings), "pose_loader": _loading(settings), "pose_training": _training(settings)}


def _crops(settings: Settings) -> dict[str, Result]:
    """One photograph in memory, 640 x 480, cut by matrices of a training run."""
    generator = np.random.default_rng(0)
    pixels = photograph(480, 640, generator)
    matrices = [_matrix(_box(generator, 640, 480), generator) for _ in range(CROPS)]
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    one_by_one: dict[str, Callable[[np.ndarray], Any]] = {
        PIL: lambda matrix: pil_crop(Image.fromarray(pixels), matrix),
        OURS: lambda matrix: crop(tensor, matrix, SIZE),
    }
    opencv = _opencv(pixels)
    if opencv is not None:
        one_by_one[OPENCV] = opencv
    candidates = {name: lambda one=one: [one(matrix) for matrix in matrices] for name, one in one_by_one.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader's worker
    try:
        times = interleaved(candidates, settings.rounds(CROP_ROUNDS), torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)

    def faster(peer: str, note: str) -> Result:
        return times.result(peer, OURS, {n: f"{1000 * times.median(n) / CROPS:.2f} ms" for n in (OURS, peer)}, note)

    missing = Result(None, note="OpenCV is not installed")
    return {
        "pose_crop": faster(PIL, "one thread"),
        "pose_crop_opencv": faster(OPENCV, "one thread") if opencv is not None else missing,
    }


def pil_crop(image: Image.Image, matrix: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8. PIL counts from pixels' corners, so half a pixel is taken off and put on."""
    back = inverse(matrix)
    back[:, 2] += 0.5 - back[:, :2].sum(1) / 2
    size = (SIZE[1], SIZE[0])
    return np.asarray(image.transform(size, Image.Transform.AFFINE, back.flatten().tolist(), Image.Resampling.BILINEAR))


def _opencv(pixels: np.ndarray) -> Callable[[np.ndarray], np.ndarray] | None:
    try:
        import cv2
    except ImportError:
        return None
    cv2.setNumThreads(1)
    return lambda matrix: cv2.warpAffine(pixels, matrix, (SIZE[1], SIZE[0]), flags=cv2.INTER_LINEAR)


def _loading(settings: Settings) -> Result:
    """Read, decode, crop with the published augmentation, collate, on to the main process, one worker each. The plain
    version also makes floats, normalises and draws the heat maps in the worker, as the published one does; ours leaves
    that to the device."""
    with tempfile.TemporaryDirectory() as folder:
        size = write_photographs(Path(folder), settings.images)
        files = sorted(Path(folder, "train").rglob("*.JPEG"))
        people = [_annotation(number, file) for number, file in enumerate(files, start=1)]
        _write_annotations(Path(folder), files, people)
        ours, plain = _persons(folder), _PlainPersons(files, people)
        epochs: dict[str, Callable[[], Iterable]] = {
            PIL: lambda: DataLoader(plain, BATCH, num_workers=1),
            OURS: lambda: Loader(ours, EvaluationOrder(len(ours), BATCH), seed=0, workers=1),
        }
        times = epoch_times(epochs, settings.rounds(LOADER_ROUNDS))
    absolute = {name: f"{1 / times.median(name):.0f} images/s" for name in (OURS, PIL)}
    return times.result(PIL, OURS, absolute, f"{settings.images} files of {size / 1000:.0f} KB")


class _PlainPersons:
    """A training sample with PIL and NumPy alone: pixels as floats, 17 heat maps, 17 weights."""

    def __init__(self, files: list[Path], people: list[dict[str, Any]]) -> None:
        self.files, self.people, self.generator = files, people, np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image, person = Image.open(self.files[index]).convert("RGB"), self.people[index]
        left, top, wide, tall = person["bbox"]
        matrix = _matrix(np.array([left, top, left + wide, top + tall]), self.generator)
        points = transform(np.reshape(person["keypoints"], (-1, 3))[:, :2], matrix)
        pixels = (pil_crop(image, matrix) / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
        targets = np.zeros((len(points), *MAPS), np.float32)
        rows, columns = np.mgrid[: MAPS[0], : MAPS[1]]
        for target, (x, y) in zip(targets, (points / 4 + 0.5).astype(int), strict=True):
            far = (abs(rows - y) > 6) | (abs(columns - x) > 6)
            target[:] = np.where(far, 0, np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 8))
        return pixels.transpose(2, 0, 1).copy(), targets, np.ones(len(points), np.float32)


def _persons(folder: str) -> Persons:
    """The pose task's own data set."""
    split = CocoKeypoints(folder, "persons.json", "train", "persons.json", "train").split("train")
    return Persons(split, [annotated(split.annotations)], SIZE, COCO, Augmentation())


def _annotation(number: int, file: Path) -> dict[str, Any]:
    """The one person of image `number`, as COCO's files have it."""
    generator = np.random.default_rng(number)
    with Image.open(file) as image:
        box = _box(generator, *image.size)
    points = np.column_stack([generator.uniform(box[:2], box[2:], (KEY_POINTS, 2)), np.full(KEY_POINTS, 2)])
    bbox = [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]
    about = {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "num_keypoints": KEY_POINTS}
    return {**about, "bbox": bbox, "area": bbox[2] * bbox[3], "keypoints": points.flatten().tolist()}


def _write_annotations(folder: Path, files: list[Path], people: list[dict[str, Any]]) -> None:
    listed = []
    for number, file in enumerate(files, start=1):
        with Image.open(file) as image:
            size = {"width": image.width, "height": image.height}
        listed.append({"id": number, "file_name": file.relative_to(folder / "train").as_posix(), **size})
    category = {"id": 1, "name": "person", "keypoints": list(COCO), "skeleton": []}
    content = {"images": listed, "annotations": people, "categories": [category]}
    (folder / "persons.json").write_text(json.dumps(content))


def _box(generator: np.random.Generator, width: int, height: int) -> np.ndarray:
    tall = generator.uniform(0.15, 0.95) * height
    wide = min(tall * generator.uniform(0.25, 0.8), 0.95 * width)
    left, top = generator.uniform(0, width - wide), generator.uniform(0, height - tall)
    return np.array([left, top, left + wide, top + tall])


def _matrix(box: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """With the published augmentation."""
    centre, extent = framed(box, SIZE)
    scale = np.clip(generator.normal(1, 0.3), 0.7, 1.3)
    rotation = np.clip(generator.normal(0, 40), -80, 80) if generator.random() < 0.6 else 0
    return affine(centre, extent * scale, SIZE, rotation, generator.random() < 0.5)


def _training(settings: Settings) -> Result:
    """A step of Adam at 256 x 192, gates at the deconvolutions."""
    precision = Precision("auto", settings.device)
    networks = {PLAIN: _network(settings, 1), ATTENDED: _network(settings, settings.flows)}
    one = torch.empty(1, 3, *SIZE, dtype=torch.uint8, device="meta")
    counted = [measure.gflops(_network(settings, flows).to("meta"), one).total for flows in (1, settings.flows)]
    candidates = {name: _step(settings, precision.place(network), precision) for name, network in networks.items()}
    times = interleaved(candidates, settings.rounds(TRAINING_ROUNDS), settings.device)
    note = f"256 x 192; multiply-adds {counted[1]:.3f} / {counted[0]:.3f} GFLOPs = {counted[1] / counted[0]:.3f}"
    medians = {name: times.median(name) for name in (ATTENDED, PLAIN)}
    return times.result(ATTENDED, PLAIN, milliseconds(medians, settings.batch), note)


def _network(settings: Settings, flows: int) -> nn.Module:
    torch.manual_seed(0)
    body = deconvolved(build.make(configured(settings, 1)[0]["backbone"], "backbone"), [256] * 3)
    body = TDAF(body, flows, settings.anar, gated="appended")
    return PoseNetwork(body, KEY_POINTS, Normalise(MEAN, STD))


def _step(settings: Settings, network: nn.Module, precision: Precision) -> Callable[[], None]:
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    x = torch.randint(0, 256, (settings.batch, 3, *SIZE), dtype=torch.uint8, device=settings.device)
    points = torch.rand(settings.batch, KEY_POINTS, 2, device=settings.device) * SIZE[1]
    seen = torch.ones(settings.batch, KEY_POINTS, device=settings.device)
    stride = network.stride

    def call() -> None:
        with precision.autocast():
            maps = network(x)
        heatmap_loss(maps, *encode(points, seen, maps.shape[2:], stride)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return call
