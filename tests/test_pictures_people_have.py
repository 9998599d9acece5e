"""Pictures out of cameras, microscopes and drawing programs: each is read as it is meant, or refused by its name."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import script
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from scripts.check_data import check
from tasks.classification.folder import ImageFolder
from tasks.classification.task import Classification
from tasks.classification.transforms import imagenet_val
from tasks.coco.source import CocoFiles
from tasks.pose.source import CocoKeypoints
from tdaf.errors import UnreadableSample, UserError
from tdaf.media.files import Media
from tdaf.media.image import image_notes, image_size, read_image

RAMP = (np.arange(24 * 32, dtype=np.uint16) * 85).reshape(24, 32)  # 0 to 65195
EIGHT = np.round(RAMP / 257).astype(np.uint8)


def picture(width: int = 61, height: int = 43) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def saved(path: Path, image: Image.Image, orientation: int | None = None, **settings: object) -> Path:
    if orientation is not None:
        settings["exif"] = Image.Exif()
        settings["exif"][0x0112] = orientation
    image.save(path, **settings)
    return path


def hwc(image: Tensor) -> np.ndarray:
    assert image.dtype == torch.uint8 and image.permute(1, 2, 0).is_contiguous()
    return image.permute(1, 2, 0).numpy()


def white_is_zero(path: Path) -> None:
    saved(path, Image.fromarray(65535 - RAMP), tiffinfo={262: 0})


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.png", lambda path: saved(path, Image.fromarray(RAMP))),
        ("a.tif", lambda path: saved(path, Image.fromarray(RAMP))),
        ("big endian.tif", lambda path: saved(path, Image.fromarray(RAMP.astype(">u2")))),
        ("white is zero.tif", white_is_zero),
        ("a.pgm", lambda path: path.write_bytes(b"P5 32 24 65535\n" + RAMP.astype(">u2").tobytes())),
        ("a.jp2", lambda path: saved(path, Image.fromarray(RAMP), irreversible=False)),
    ],
)
def test_sixteen_bits_are_scaled_by_their_range(name: str, make, tmp_path: Path) -> None:
    make(tmp_path / name)
    got = hwc(read_image(tmp_path / name))
    assert np.abs(got.astype(int) - EIGHT[..., None]).max() == 0
    assert image_notes(tmp_path / name) == ["with more than 8 bits a channel, scaled to 8"]


def test_sixteen_bit_colours_are_scaled(tmp_path: Path) -> None:
    import struct
    import zlib

    colours = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], -1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    chunks = (b"IHDR", struct.pack(">IIBBBBB", 32, 24, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    written = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(written))
    assert np.abs(hwc(read_image(tmp_path / "a.png")) - colours / 257).max() <= 1


@pytest.mark.parametrize(("kind", "said"), [(np.float32, "floating-point"), (np.int32, "32-bit or signed")])
def test_numbers_without_a_range_are_refused_by_name(kind: type, said: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(RAMP.astype(kind)))
    with pytest.raises(UnreadableSample, match=f"{said}.*convert it.*a.tif"):
        read_image(path)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_picture_as_tools_do(kind: str, orientation: int, tmp_path: Path) -> None:
    path = saved(tmp_path / f"a.{kind}", picture(), orientation)
    with Image.open(path) as image:
        turned = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(hwc(read_image(path, exif=True)), turned)
    assert image_size(path, exif=True) == turned.shape[:2]
    as_it_lies = turned.shape if kind == "tif" else (43, 61, 3)  # PIL itself turns TIFF
    assert hwc(read_image(path)).shape == as_it_lies and image_size(path) == as_it_lies[:2]
    pictures = Media([path])
    assert np.array_equal(hwc(pictures.read(0)), turned), "predict"
    plain = Media([path])
    plain.reading = {"exif": False}
    assert hwc(plain.read(0)).shape == as_it_lies, "detect_people with data.exif=false"


def test_damaged_exif_does_no_harm(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.webp"):
        path = saved(tmp_path / name, picture(), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
        assert read_image(path, exif=True).shape == (3, 43, 61)


def coco(root: Path, size: tuple[int, int] | None, orientation: int) -> Path:
    for split in ("train2017", "val2017"):
        (root / split).mkdir(parents=True)
        saved(root / split / "a.jpg", picture(), orientation)
        image = {"id": 1, "file_name": "a.jpg"} | ({} if size is None else {"width": size[0], "height": size[1]})
        box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 20, 30], "area": 600, "iscrowd": 0}
        (root / "annotations").mkdir(exist_ok=True)
        document = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(document))
    return root


@pytest.mark.parametrize("size", [None, (43, 61)])
def test_boxes_fit_the_turned_picture(size: tuple[int, int] | None, tmp_path: Path) -> None:
    split = CocoFiles(str(coco(tmp_path, size, 6))).split("val")
    assert CocoKeypoints(str(tmp_path), val_annotations="annotations/instances_val2017.json").reading == split.reading
    assert split.read(0).shape == (3, 61, 43) and split.annotations.sizes[0].tolist() == [61, 43]
    upside_down = CocoFiles(str(coco(tmp_path / "other", None, 3))).split("val")
    assert np.array_equal(hwc(upside_down.read(0)), hwc(read_image(tmp_path / "other/val2017/a.jpg"))[::-1, ::-1])


def test_boxes_of_the_picture_as_it_lies_need_a_setting(tmp_path: Path) -> None:
    root = str(coco(tmp_path, (61, 43), 6))
    with pytest.raises(UnreadableSample, match="43 x 61 pixels.*says 61 x 43; it fits with data.exif=false"):
        CocoFiles(root).split("val").read(0)
    assert CocoFiles(root, exif=False).split("val").read(0).shape == (3, 43, 61)


def transparent(kind: str, path: Path) -> None:
    """Red where it is seen, in the left half, and green where it is hidden."""
    colours = np.zeros((8, 8, 4), np.uint8)
    colours[:, :4], colours[:, 4:] = (255, 0, 0, 255), (0, 255, 0, 0)
    image = Image.fromarray(colours)
    if kind == "LA":
        image.convert("LA").save(path)
    elif kind == "P":
        palette = image.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
        palette.save(path, transparency=palette.getpixel((7, 0)))
    elif kind == "RGB":
        image.convert("RGB").save(path, transparency=(0, 255, 0))
    else:
        image.save(path)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "RGB"])
def test_transparency_is_laid_on_a_background(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    transparent(kind, path)
    hidden, laid = hwc(read_image(path)), hwc(read_image(path, background=(10, 20, 30)))
    seen = [76, 76, 76] if kind == "LA" else [255, 0, 0]
    assert hidden[0, 0].tolist() == laid[0, 0].tolist() == seen
    assert laid[0, 7].tolist() == [10, 20, 30] and hidden[0, 7].tolist() in ([0, 255, 0], [150, 150, 150], [149] * 3)
    assert image_notes(path)[0].startswith("transparent, their hidden colours show")
    assert image_notes(path, background=(0, 0, 0)) == ["transparent, laid on data.background"]
    saved(tmp_path / "b.png", picture())
    assert torch.equal(read_image(tmp_path / "b.png", background=(1, 2, 3)), read_image(tmp_path / "b.png"))


def test_predict_sees_what_training_saw(tmp_path: Path) -> None:
    transparent("RGBA", tmp_path / "a.png")
    data = SimpleNamespace(classes=["a", "b"], background=[10, 20, 30])
    task = Classification(data, v2.Identity(), {"1crop": v2.Identity()}, mean=[0.5] * 3, std=[0.5] * 3)
    assert task.predict_dataset([tmp_path / "a.png"])[0]["input"][:, 0, 7].tolist() == [10, 20, 30]


@pytest.mark.parametrize("background", ["white", [1, 2], [0, 0, 256], 3])
def test_a_background_is_a_colour(background: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="background=.*three whole numbers from 0 to 255"):
        ImageFolder(str(tmp_path), background=background)


def test_a_folder_takes_exif_and_background(tmp_path: Path) -> None:
    (tmp_path / "val/c").mkdir(parents=True)
    saved(tmp_path / "val/c/a.jpg", picture(), 6)
    transparent("RGBA", tmp_path / "val/c/b.png")
    plain = ImageFolder(str(tmp_path)).split("val")
    mended = ImageFolder(str(tmp_path), exif=True, background=[9, 9, 9]).split("val")
    assert plain.read(0)[0].shape == (3, 43, 61) and mended.read(0)[0].shape == (3, 61, 43)
    assert mended.read(1)[0][:, 0, 7].tolist() == [9, 9, 9]


@pytest.mark.parametrize("crops", [1, 10])
@pytest.mark.parametrize("shape", [(2, 20000), (20000, 2), (1, 9000)])
def test_a_long_thin_picture_costs_its_crop(crops: int, shape: tuple[int, int], monkeypatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("the whole picture is scaled")

    monkeypatch.setattr("torchvision.transforms.v2.functional.resize", refused)
    image = torch.arange(shape[0] * shape[1]).view(1, *shape).expand(3, -1, -1).to(torch.uint8)
    got = imagenet_val(crops=crops)(image)
    assert got.shape == ((10, 3, 224, 224) if crops == 10 else (3, 224, 224))


def test_a_long_picture_is_cut_where_a_scaled_one_would_be() -> None:
    """At eight to one and just above it, which is cut first, the middle is the same."""
    image = torch.from_numpy(np.array(picture(4200, 500))).permute(2, 0, 1)
    exact, first = imagenet_val()(image[:, :, 100:4100]), imagenet_val()(image[:, :, 99:4101])
    assert (exact.int() - first.int()).abs().max() <= 6
    ten, ten_first = imagenet_val(crops=10)(image[:, :, 100:4100]), imagenet_val(crops=10)(image[:, :, 99:4101])
    assert (ten.int() - ten_first.int()).abs().float().mean() < 3


def test_check_data_prints_one_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """What was mended, to be looked at and refused, by kinds; each bad file once; other files by their endings."""
    noise = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    for split in ("train", "val"):
        (tmp_path / split / "c").mkdir(parents=True)
        saved(tmp_path / split / "c/plain.png", picture())
    folder = tmp_path / "val/c"
    saved(folder / "turned.jpg", picture(), 6)
    saved(folder / "deep.png", Image.fromarray(RAMP))
    saved(folder / "float.tif", Image.fromarray(RAMP.astype(np.float32)))
    saved(folder / "cmyk.jpg", picture().convert("CMYK"))
    transparent("RGBA", folder / "clear.png")
    Image.fromarray(noise).resize((300, 200)).save(folder / "hole.jpg", quality=90)
    whole = (folder / "hole.jpg").read_bytes()
    (folder / "hole.jpg").write_bytes(whole[: len(whole) // 2] + whole[len(whole) // 2 + 700 :])
    (folder / "notes.txt").touch()

    def checked(*words: str) -> tuple[int, list[str]]:
        settings = ["task=imagenet", f"data.root={tmp_path}", f"out={tmp_path / 'skip.txt'}", "loader.workers=0"]
        return script(check, [*settings, *words]), capsys.readouterr().out.splitlines()

    code, said = checked("scan=strict")
    assert code == 1 and (tmp_path / "skip.txt").read_text() == "val/c/float.tif\nval/c/hole.jpg\n"
    table = [(*line.split(None, 2)[:2], line[18:].strip()) for line in said[said.index("   train     val") + 1 : -1]]
    rows = {label.partition(",")[0]: (int(train), int(val)) for train, val, label in table}
    assert rows["read"] == (1, 5) and rows["refused"] == (0, 2) and rows["on the skip list"] == (0, 0)
    for kind in ("with more than 8 bits a channel", "in other colours (CMYK)", "to be turned", "transparent"):
        assert rows[kind] == (0, 1), kind
    assert rows["pixels that are floating-point numbers"] == rows["files that are no images by their endings"] == (0, 1)
    assert sum(label.startswith("Corrupt JPEG data: ") for _, _, label in table) == 1
    assert checked(f"data.skip_list={tmp_path / 'skip.txt'}", "data.exif=true")[0] == 0
