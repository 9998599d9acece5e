"""Image files, folders of them, and CIFAR-10: pixels equal PIL's, and every fault has its one line."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.io
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionFolder

from tasks.classification.cifar import Cifar10
from tasks.classification.folder import ImageFolder
from tdaf.media.image import read_image
from tdaf.demo.classification import write_cifar10
from tdaf.errors import UnreadableSample, UserError


def picture(width: int = 61, height: int = 43, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def ycck() -> bytes:
    """A CMYK JPEG whose Adobe marker says YCCK, the other four-channel kind."""
    data = bytearray(encoded(picture().convert("CMYK")))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(), exif=exif)


def with_alpha() -> Image.Image:
    image = picture()
    image.putalpha(picture(seed=1).convert("L"))
    return image


KINDS = {
    "rgb": lambda: encoded(picture(), quality=90),
    "no subsampling": lambda: encoded(picture(), subsampling=0),
    "progressive": lambda: encoded(picture(), progressive=True),
    "one pixel": lambda: encoded(picture(1, 1)),
    "thin": lambda: encoded(picture(3, 97)),
    "grey": lambda: encoded(picture().convert("L")),
    "cmyk": lambda: encoded(picture().convert("CMYK")),
    "ycck": ycck,
    "exif rotation": rotated,
    "png": lambda: encoded(picture(), "PNG"),
    "palette png": lambda: encoded(picture().convert("P"), "PNG"),
    "transparent palette png": lambda: encoded(picture().convert("P"), "PNG", transparency=3),
    "alpha png": lambda: encoded(with_alpha(), "PNG"),
    "grey alpha png": lambda: encoded(with_alpha().convert("LA"), "PNG"),
    "16 bit png": lambda: encoded(Image.fromarray(np.arange(60, dtype=np.uint16).reshape(6, 10) * 1000), "PNG"),
    "1 bit png": lambda: encoded(picture().convert("1"), "PNG"),
    "bmp": lambda: encoded(picture(), "BMP"),
    "gif of two frames": lambda: encoded(picture(), "GIF", save_all=True, append_images=[picture(seed=2)]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_equal_pil(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.JPEG"
    path.write_bytes(KINDS[kind]())
    with Image.open(path) as image:
        expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    got = read_image(path)
    assert got.dtype == torch.uint8 and torch.equal(got, expected)


def test_pixels_without_torchvision_decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.JPEG").write_bytes(encoded(picture()))
    fast = read_image(tmp_path / "x.JPEG")
    monkeypatch.delattr(torchvision.io, "decode_image")
    slow = read_image(tmp_path / "x.JPEG")
    assert torch.equal(fast, slow) and slow.permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"a text and no image\n" * 9, "not an image"),
        (encoded(picture(300, 200))[:2000], "truncated"),
        (encoded(picture())[:-2], "truncated"),
        (encoded(picture(), progressive=True)[:-2], "truncated"),
        (encoded(picture(), "PNG")[:400], "truncated"),
        (None, "No such file"),
    ],
)
def test_unreadable_files(content: bytes | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.JPEG"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableSample) as raised:
        read_image(path)
    message = str(raised.value)
    assert reason in message and str(path) in message and "\n" not in message


def make(root: Path, files: dict[str, int]) -> Path:
    """A folder with so many images in each `split/class`."""
    for folder, count in files.items():
        (root / folder).mkdir(parents=True)
        for n in range(count):
            suffix = (".JPEG", ".jpg", ".png", ".JPG", ".jpeg")[n % 5]
            content = encoded(picture(8 + n, 9, seed=n), "PNG" if suffix == ".png" else "JPEG")
            (root / folder / f"{folder[-1]}_{n}{suffix}").write_bytes(content)
    return root


TWO = {"train/b": 3, "train/a": 6, "val/a": 2, "val/b": 1}


def test_folder_equals_torchvisions(tmp_path: Path) -> None:
    make(tmp_path, TWO)
    (tmp_path / "train/a/notes.txt").write_text("no image")
    ours, theirs = ImageFolder(str(tmp_path), num_classes=2), TorchvisionFolder(str(tmp_path / "train"))
    train = ours.split("train")
    assert ours.classes == theirs.classes == ["a", "b"]
    assert len(train) == len(theirs) == 9 and train.skipped == 0
    assert [str(tmp_path / train.name(i)) for i in range(9)] == [path for path, _ in theirs.samples]
    for i, (image, label) in enumerate(theirs):
        pixels, ours_label = train.read(i)
        assert ours_label == label
        assert torch.equal(pixels, torch.from_numpy(np.array(image)).permute(2, 0, 1))
    assert [ours.split("val").name(i) for i in range(3)] == ["val/a/a_0.JPEG", "val/a/a_1.jpg", "val/b/b_0.JPEG"]


def test_skip_list(tmp_path: Path) -> None:
    make(tmp_path, TWO)
    listed = tmp_path / "skip.txt"
    listed.write_text("train/a/a_1.jpg\n\ntrain/b/b_0.JPEG\ntrain/b/gone.JPEG\n")
    source = ImageFolder(str(tmp_path), skip_list=str(listed))
    train = source.split("train")
    names = [train.name(i) for i in range(len(train))]
    assert train.skipped == 2 and len(names) == 7
    assert "train/a/a_1.jpg" not in names and "train/b/b_0.JPEG" not in names
    assert [train.read(i)[1] for i in range(7)] == [0] * 5 + [1] * 2
    assert source.split("val").skipped == 0 and len(source.split("val")) == 3


def test_names_for_people(tmp_path: Path) -> None:
    make(tmp_path / "own", TWO)
    (tmp_path / "own/classes.txt").write_text("b bicycle, built for two\nz zebra\n")
    assert ImageFolder(str(tmp_path / "own")).classes == ["a", "bicycle, built for two"]
    for n in range(1000):
        (tmp_path / f"imagenet/val/n{n:08d}").mkdir(parents=True)
    assert ImageFolder(str(tmp_path / "imagenet")).classes[:2] == ["tench", "goldfish"]


def test_evaluation_needs_no_train(tmp_path: Path) -> None:
    source = ImageFolder(str(make(tmp_path, {"val/a": 1, "val/b": 1})))
    assert len(source.split("val")) == 2
    with pytest.raises(UserError, match="no train/ in it.*recipe=demo"):
        source.split("train")


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ({"train/a": 1}, {}, r"no val/ in it; expected train/<class>/\*\.JPEG.*recipe=demo"),
        ({"val": 2}, {}, "holds images but no class folders.*prepare_imagenet.py --root"),
        ({"val": 0}, {}, "no class folders; expected"),
        ({"train/a": 1, "train/b": 1, "val/a": 1, "val/c": 1}, {}, "only in train/: b; only in val/: c"),
        (TWO, {"num_classes": 3}, "data.num_classes=3, but .* has 2 class folders"),
        (TWO, {"skip_list": "nowhere.txt"}, "data.skip_list=nowhere.txt: No such file"),
        ({"train/a": 1, "train/b": 0, "val/a": 1, "val/b": 1}, {}, "1 class folder.*train.*without an image.*: b"),
    ],
)
def test_folder_faults(files: dict[str, int], settings: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        ImageFolder(str(make(tmp_path, files)), **settings).split("train")
    assert "\n" not in str(raised.value)


def test_roots_that_cannot_be(tmp_path: Path) -> None:
    for source in (ImageFolder, Cifar10):
        with pytest.raises(UserError, match="data.root is not set.*recipe=demo"):
            source(None)
    with pytest.raises(UserError, match="no such folder.*expected train/.*recipe=demo"):
        ImageFolder(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no data_batch_1 in .*cifar-10-batches-py; expected .*recipe=demo"):
        Cifar10(str(tmp_path))


def test_cifar(tmp_path: Path) -> None:
    write_cifar10(tmp_path, seed=0, train=23, val=4)
    source = Cifar10(str(tmp_path))
    assert Cifar10(str(tmp_path / "cifar-10-batches-py")).classes == source.classes and len(source.classes) == 10
    train = source.split("train")
    assert len(train) == 23 and len(source.split("val")) == 4 and train.skipped == 0
    row = 0
    for part in range(1, 6):
        with (tmp_path / f"cifar-10-batches-py/data_batch_{part}").open("rb") as file:
            batch = pickle.load(file, encoding="bytes")  # as the data set's own page says
        for n, (pixels, label) in enumerate(zip(batch[b"data"], batch[b"labels"], strict=True)):
            image, got = train.read(row)
            assert got == label and np.array_equal(image.numpy().ravel(), pixels)
            assert train.name(row) == f"data_batch_{part}[{n}]"
            row += 1


def test_cifar_faults(tmp_path: Path) -> None:
    write_cifar10(tmp_path, seed=0, train=10, val=4)
    batch = tmp_path / "cifar-10-batches-py/data_batch_2"
    good = batch.read_bytes()
    wrong = {"data": np.zeros((2, 5), np.uint8), "labels": [0, 1]}
    outside = {"data": np.zeros((1, 3072), np.uint8), "labels": [10]}
    cases = [(good[:50], "damaged"), (b"text", "damaged"), (pickle.dumps([1]), "no CIFAR-10 batch")]
    cases += [(pickle.dumps(Path("x")), "damaged or no CIFAR-10 batch")]
    cases += [(pickle.dumps(wrong, 2), "not a CIFAR-10 batch"), (pickle.dumps(outside, 2), "labels outside 0..9")]
    for content, message in cases:
        batch.write_bytes(content)
        with pytest.raises(UserError, match=message) as raised:
            Cifar10(str(tmp_path)).split("train")
        assert "data_batch_2" in str(raised.value) and "\n" not in str(raised.value)
