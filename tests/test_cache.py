"""Training's images kept in memory: which pixels they have, one copy for all who read, and its end; and images that
are decoded on their device (here the CPU, tests/test_gpu.py on a GPU)."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT
from PIL import Image

from tasks.classification.encoded import EncodedImages
from tasks.classification.folder import ImageFolder
from tasks.classification.task import Samples
from tasks.classification.transforms import Mixing, imagenet_train
from tdaf.engine.data import EvaluationOrder, Loader
from tdaf.engine.precision import to_device
from tdaf.errors import RunError, UnreadableSample, UserError
from tdaf.media import cache
from tdaf.media.image import QUALITY, bounded, read_image

SIZES = ((40, 60), (90, 70), (200, 131), (64, 64))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cache, "FOLDER", str(tmp_path / "shm"))
    (tmp_path / "shm").mkdir()
    return written(tmp_path / "root")


def written(root: Path) -> Path:
    for split in ("train", "val"):
        (root / split / "a").mkdir(parents=True)
        for number, (height, width) in enumerate(SIZES):
            coarse = np.random.default_rng(number).integers(0, 256, (5, 7, 3), np.uint8)
            image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            image.save(root / split / "a" / f"{number}.JPEG", quality=92)
    return root


def kept(root: Path) -> list[str]:
    return os.listdir(root.parent / "shm")


def test_what_is_kept(root: Path) -> None:
    images = ImageFolder(str(root), cache="ram", cache_side=64).split("train")
    for number, (height, width) in enumerate(SIZES):
        path = root / "train" / "a" / f"{number}.JPEG"
        content, file = bounded(path, 64), np.fromfile(path, np.uint8)
        assert np.array_equal(content, file) == (min(height, width) <= 64)
        first, again = images.read(number)[0], images.read(number)[0]
        assert torch.equal(first, again) and torch.equal(first, read_image(path, data=content))
        assert min(first.shape[1:]) == min(64, height, width)
        assert abs(first.shape[1] / first.shape[2] - height / width) < 0.02
        whole = torch.nn.functional.interpolate(read_image(path)[None].float(), first.shape[1:], mode="area")[0]
        assert (first.float() - whole).abs().mean() < 4, QUALITY
    unchanged = ImageFolder(str(root), cache="ram", cache_side=64).split("val")
    assert torch.equal(unchanged.read(2)[0], read_image(root / "val" / "a" / "2.JPEG"))


def test_one_copy_for_workers_ranks_and_epochs(root: Path) -> None:
    def batch(workers: int) -> dict[str, torch.Tensor]:
        folder = ImageFolder(str(root), cache="ram", cache_side=64)
        samples = Samples(folder.split("train"), imagenet_train(size=32, short_side=[32, 48]), Mixing(0, 0))
        (found,) = Loader(samples, EvaluationOrder(4, 4), seed=0, workers=workers)
        everything.append(samples)
        return found

    everything: list[Samples] = []
    filled = batch(workers=1)
    for path in (root / "train" / "a").iterdir():
        path.write_bytes(b"")  # from here on only memory has it
    found = batch(workers=0)
    assert torch.equal(found["input"], filled["input"]) and found["index"].tolist() == [0, 1, 2, 3]
    assert len(kept(root)) == 1
    everything.pop()
    assert len(kept(root)) == 1
    everything.pop()
    assert kept(root) == []


def test_what_a_killed_process_leaves_goes_with_the_next_start(root: Path) -> None:
    code = f"""
import os, signal
from tdaf.media import cache
cache.FOLDER = {cache.FOLDER!r}
mine = cache.SharedCache("killed", 4, lambda index: 10)
mine.put(1, __import__("numpy").arange(9, dtype="uint8"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    left = kept(root)
    assert len(left) == 1
    again = cache.SharedCache("killed", 4, lambda index: 10)
    assert kept(root) == left and again.get(1) is None
    other = cache.SharedCache("another", 4, lambda index: 10)
    assert len(kept(root)) == 2
    again.close()
    other.close()
    assert kept(root) == []


def test_no_room(root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    said = r"data\.cache=ram needs 1050\.0 GB for 1000 images: .* GB free, .*; give a smaller data\.cache_side"
    with pytest.raises(UserError, match=said):
        cache.SharedCache("large", 1000, lambda index: 10**9)
    assert kept(root) == []
    images = ImageFolder(str(root), cache="ram").split("train")
    pwrite = os.pwrite
    monkeypatch.setattr(cache.os, "pwrite", lambda file, content, place: pwrite(file, content[:100], place))
    for _ in range(2):
        assert torch.equal(images.read(1)[0], read_image(root / "train" / "a" / "1.JPEG"))
    assert capfd.readouterr().err.count("is full") == 1
    (root / "train" / "a" / "1.JPEG").write_bytes(b"")
    with pytest.raises(UnreadableSample, match="empty"):
        images.read(1)


def decoded(root: Path, device: torch.device, workers: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs decoded on a device and by a worker. The second image is a PNG, which is made a JPEG first."""
    with Image.open(root / "train" / "a" / "0.JPEG") as image:
        image.save(root / "train" / "a" / "0.png")
    images = ImageFolder(str(root)).split("train")
    how = imagenet_train(size=32, short_side=[32, 48]), Mixing(0, 0)
    there, here = (
        next(iter(Loader(samples, EvaluationOrder(5, 5), seed=1, workers=workers)))
        for samples in (Samples(images, *how, decode="gpu"), Samples(images, *how))
    )
    assert len(there["input"]) == 5 and torch.equal(there["label"], here["label"])
    return to_device(there, device)["input"], here["input"]


def test_images_decoded_on_their_device_are_those_of_a_worker(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found, expected = decoded(root, torch.device("cpu"))
    assert found.dtype == torch.uint8 and found.shape == (5, 3, 32, 32)
    difference = (found.int() - expected.int()).abs()
    assert difference[1].float().mean() < 2 and difference[[0, 2, 3, 4]].max() <= 1  # by rounding
    images, how = ImageFolder(str(root)).split("train"), (imagenet_train(), Mixing(0, 0))
    damaged = EncodedImages.of([(np.zeros(9, np.uint8), (0, 0, 1, 1), False)], 8)
    with pytest.raises(RunError, match="data.decode=gpu: "):
        damaged.to("cpu")
    for wrong, mixing in ((imagenet_train(lighting=0.1), Mixing(0, 0)), (imagenet_train(), Mixing(0.2, 0))):
        with pytest.raises(UserError, match="crops and mirroring alone"):
            Samples(images, wrong, mixing, decode="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU here"):
        Samples(images, *how, decode="gpu")


@pytest.mark.parametrize(("settings", "said"), [({"cache": "disk"}, "cache=disk"), ({"cache_side": 0}, "cache_side=0")])
def test_settings_that_cannot_be(settings: dict[str, object], said: str, root: Path) -> None:
    with pytest.raises(UserError, match=said):
        ImageFolder(str(root), **settings)
