"""Image files, folders of them, and CIFAR-10: pixels equal PIL's, and every fault has its one line."""

import io
import itertools
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.io
from PIL import Image
from torchvision.datasets import CIFAR10
from torchvision.datasets import ImageFolder as TorchvisionFolder

from tasks.classification.cifar import Cifar10
from tasks.classification.folder import ImageFolder
from tasks.classification.task import Samples
from tasks.classification.transforms import Mixing, imagenet_train
from tdaf.demo.classification import write_cifar10
from tdaf.errors import UnreadableSample, UserError
from tdaf.media.image import read_box, read_image


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


@pytest.mark.parametrize("kind", [*KINDS, "2x1", "restarts", "large"])
def test_a_box_has_the_pixels_of_the_whole(kind: str, tmp_path: Path) -> None:
    more = {
        "2x1": lambda: encoded(picture(), subsampling=1),
        "restarts": lambda: encoded(picture(90, 80), restart_marker_rows=1),
        "large": lambda: encoded(picture(300, 200), quality=30),
    }
    path = tmp_path / "x.JPEG"
    path.write_bytes((KINDS | more)[kind]())
    whole = read_image(path)
    height, width = whole.shape[1:]
    for first, last in itertools.combinations(range(0, height + 1, max(1, height // 20)), 2):
        box = (first, width // 3, last - first, width - width // 2)
        asked = []
        got = read_box(path, lambda *shape, box=box, asked=asked: asked.append(shape) or box)
        assert asked == [(height, width)]
        assert torch.equal(got, whole[:, first:last, box[1] : box[1] + box[3]])


def test_rows_below_a_box_are_not_decoded(tmp_path: Path) -> None:
    data = bytearray(encoded(picture(64, 320), quality=95))
    data[-200:-2] = bytes(198)  # as damage is found in no row above
    path = tmp_path / "x.JPEG"
    path.write_bytes(data)
    with Image.open(io.BytesIO(encoded(picture(64, 320), quality=95))) as image:
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(read_box(path, lambda *_: (0, 0, 160, 64)), expected[:, :160])
    assert not torch.equal(read_image(path), expected)
    path.write_bytes(data[:-2])
    with pytest.raises(UnreadableSample, match="truncated"):
        read_box(path, lambda *_: (0, 0, 160, 64))


def test_training_reads_by_boxes_what_it_would_cut_from_whole_images(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "x.JPEG").write_bytes(encoded(picture(300, 200)))
    images = ImageFolder(str(tmp_path)).split("train")
    for transform in (imagenet_train(lighting=0.1), imagenet_train(short_side=None, scale=[0.08, 1.0])):
        samples = Samples(images, transform, Mixing(0, 0))
        for seed in range(5):
            torch.manual_seed(seed)
            expected = transform(images.read(0)[0])
            torch.manual_seed(seed)
            assert torch.equal(samples[0]["input"], expected)


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
            suffix, kind = SUFFIXES[n % len(SUFFIXES)]
            (root / folder / f"{folder[-1]}_{n}{suffix}").write_bytes(encoded(picture(8 + n, 9, seed=n), kind))
    return root


SUFFIXES = [
    (".JPEG", "JPEG"), (".jpg", "JPEG"), (".png", "PNG"), (".JPG", "JPEG"), (".jpeg", "JPEG"), (".bmp", "BMP"),
    (".tif", "TIFF"), (".tiff", "TIFF"), (".webp", "WEBP"),
]  # fmt: skip
TWO = {"train/b": 3, "train/a": 6, "val/a": 2, "val/b": 1}


def test_folder_equals_torchvisions_with_sub_folders_too(tmp_path: Path) -> None:
    make(tmp_path, {**TWO, "train/a/b": 9, "train/a/a/x": 1, "train/a/a-b": 1, "train/b/z": 2})
    (tmp_path / "train/a/notes.txt").write_text("no image")
    ours, theirs = ImageFolder(str(tmp_path), num_classes=2), TorchvisionFolder(str(tmp_path / "train"))
    train = ours.split("train")
    assert ours.classes == theirs.classes == ["a", "b"]
    assert len(train) == len(theirs) == 22 and train.skipped == 0
    assert [str(tmp_path / train.name(i)) for i in range(22)] == [path for path, _ in theirs.samples]
    for i, (image, label) in enumerate(theirs):
        pixels, ours_label = train.read(i)
        assert ours_label == label
        assert torch.equal(pixels, torch.from_numpy(np.array(image)).permute(2, 0, 1))
    assert [ours.split("val").name(i) for i in range(3)] == ["val/a/a_0.JPEG", "val/a/a_1.jpg", "val/b/b_0.JPEG"]


def test_a_part_of_the_classes(tmp_path: Path) -> None:
    for split, number in itertools.product(("train", "val"), range(7)):
        folder = tmp_path / split / f"class{number}"
        folder.mkdir(parents=True)
        picture().save(folder / "a.jpg")
    (tmp_path / "classes.txt").write_text("class3 the third\n")
    some = ImageFolder(str(tmp_path), every=3, num_classes=3)
    assert some.classes == ["class0", "the third", "class6"]
    assert [some.split("train").name(i) for i in range(3)] == [f"train/class{n}/a.jpg" for n in (0, 3, 6)]
    with pytest.raises(UserError, match="every=0: give 1 or more"):
        ImageFolder(str(tmp_path), every=0)


def test_what_systems_and_notebooks_leave_is_no_data(tmp_path: Path) -> None:
    make(tmp_path, {**TWO, "train/.ipynb_checkpoints": 1, "val/@eaDir": 1, "train/a/@eaDir": 1, "val/b/.cache": 1})
    (tmp_path / "train/a/._a_0.JPEG").write_bytes(b"a resource fork")
    source = ImageFolder(str(tmp_path))
    assert source.classes == ["a", "b"] and len(source.split("train")) == 9 and len(source.split("val")) == 3


@pytest.mark.parametrize("locked", ["train", "train/a", "train/a/deep"])
def test_a_folder_without_permission_is_one_line(locked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, {**TWO, "train/a/deep": 1})
    scandir = os.scandir  # permissions do not hold back root, as whom the tests may run

    def refusing(path: str) -> object:
        if Path(path) == tmp_path / locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=f"{tmp_path / locked}: Permission denied; it must be readable"):
        ImageFolder(str(tmp_path)).split("train")


def test_names_for_people(tmp_path: Path) -> None:
    make(tmp_path / "own", {"val/a": 1, "val/b": 1, "val/b c": 1, "val/d": 1})
    listed = "\ufeffb  bicycle, built for two \r\n\n \nz zebra\nb c boat, canal\nd\n"
    (tmp_path / "own/classes.txt").write_text(listed, encoding="utf-8")
    source = ImageFolder(str(tmp_path / "own"))  # evaluation needs no train/
    assert len(source.split("val")) == 4 and source.classes == ["a", "bicycle, built for two", "boat, canal", "d"]
    for n in range(1000):
        (tmp_path / f"imagenet/val/n{n:08d}").mkdir(parents=True)
    assert ImageFolder(str(tmp_path / "imagenet")).classes[:2] == ["tench", "goldfish"]


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ({"val/a": 1, "val/b": 1}, {}, "no train/ in it.*recipe=demo"),
        ({"val": 2}, {}, "holds images but no class folders.*prepare_imagenet.py root="),
        ({"train/a": 1, "train/b": 1, "val/a": 1, "val/c": 1}, {}, "only in train/: b; only in val/: c"),
        (TWO, {"num_classes": 3}, "num_classes=3, but .* has 2 classes"),
        ({"train/a": 1, "train/b": 0, "val/a": 1, "val/b": 1}, {}, "1 class folder.*train.*without an image.*: b"),
    ],
)
def test_folder_faults(files: dict[str, int], settings: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        ImageFolder(**{"root": str(make(tmp_path, files)), **settings}).split("train")
    assert "\n" not in str(raised.value)


def test_cifar(tmp_path: Path) -> None:
    write_cifar10(tmp_path, seed=0, train=23, val=4)
    source = Cifar10(str(tmp_path))
    assert Cifar10(str(tmp_path / "cifar-10-batches-py")).classes == source.classes and len(source.classes) == 10
    train = source.split("train")
    assert len(train) == 23 and len(source.split("val")) == 4 and train.skipped == 0
    unchecked = {"_check_integrity": lambda self: True, "meta": {**CIFAR10.meta, "md5": None}}
    theirs = type("Unchecked", (CIFAR10,), unchecked)(str(tmp_path))
    for i, (image, label) in enumerate(theirs):
        pixels, ours_label = train.read(i)
        assert ours_label == label and np.array_equal(pixels.permute(1, 2, 0).numpy(), np.array(image))
    names = [train.name(i) for i in (3, 4, 22)]
    assert theirs.classes == source.classes and names == ["data_batch_1[3]", "data_batch_2[0]", "data_batch_5[4]"]


def test_cifar_as_python_2_wrote_it(tmp_path: Path) -> None:
    """The official files: byte strings, and numpy's names of that time."""
    write_cifar10(tmp_path, seed=0, train=10, val=4)
    batch = tmp_path / "cifar-10-batches-py/data_batch_2"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x01M\x00\x0ctcnumpy\ndtype\n"
        b"(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00"
    )
    pixels = bytes(range(256)) * 12
    batch.write_bytes(b"\x80\x02}(U\x04data" + array + pixels + b"tbU\x06labels](K\x07eu.")
    train = Cifar10(str(tmp_path)).split("train")
    assert len(train) == 9 and train.read(2)[1] == 7 and train.read(2)[0].numpy().tobytes() == pixels


def test_cifar_faults(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="root is not set.*recipe=demo"):
        Cifar10(None)
    with pytest.raises(UserError, match="no batches.meta in .*cifar-10-batches-py; expected .*recipe=demo"):
        Cifar10(str(tmp_path))
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
