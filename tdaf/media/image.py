"""One image file to pixels, several times faster than PIL and with PIL's pixels."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from os import PathLike
from typing import Any

import numpy as np
import simplejpeg
import torch
import torchvision.io
from PIL import Image, ImageOps
from torch import Tensor

from tdaf.errors import UnreadableSample, UserError
from tdaf.media import archive

Path = str | PathLike[str]
Colour = Sequence[int]  # red, green, blue, each 0 to 255
BoxOf = Callable[[int, int], tuple[int, int, int, int]]  # from height and width to top, left, height, width

JPEG, TIFF = b"\xff\xd8", (b"II*\0", b"MM\0*")
END, SCAN, SEQUENTIAL = b"\xff\xd9", 0xDA, (0xC0, 0xC1)  # of JPEG: the last marker, those of a scan and of a frame
QUALITY = 90  # of JPEGs made smaller
BELOW = 4  # rows beneath the last one whose colours its own are interpolated from, and more
ORIENTATION = 0x0112  # the EXIF tag
BITS, PHOTOMETRIC = 258, 262  # TIFF's
CONVERTED = ("CMYK", "YCbCr", "LAB", "HSV")


def read_image(
    path: Path, exif: bool = False, background: Colour | None = None, data: np.ndarray | None = None
) -> Tensor:
    """The image as uint8 RGB (3, H, W), pixel for pixel what PIL's `Image.open(path).convert("RGB")` gives, whatever
    the file's name says about its format. The memory behind it is (H, W, 3), as decoders write it.

    16 bits a channel are scaled to 8 by the range of the format (PIL cuts them off). Of several pictures in one file
    the first is taken.

    Args:
        path: of the file; it may lead through an archive (tdaf/media/archive.py).
        exif: whether it is turned and mirrored as its EXIF tag says, as cameras and telephones mean it. By default not:
            torchvision's ImageFolder, with which the published networks were trained, does not. (PIL turns TIFF in any
            case.)
        background: on which transparent pixels are laid; None: their hidden colours show.
        data: the content instead of the file's, uint8.

    Raises:
        UnreadableSample: a missing, empty, truncated or damaged file, one that is no image, and one of numbers without
            a defined range (floating-point, 32-bit or signed ones).
    """
    return _read(_content(path) if data is None else data, path, exif, background)


def read_box(
    path: Path,
    box: BoxOf,
    exif: bool = False,
    background: Colour | None = None,
    data: np.ndarray | None = None,
) -> Tensor:
    """The pixels in `box(height, width)` of the image that `read_image` gives, which raises as this does.

    Of a JPEG the rows below the box are not decoded, which saves the time for them, and so damage there is not found; a
    file that is cut off is.
    """
    data = _content(path) if data is None else data
    frame = None if exif else _frame(data)
    if frame is not None:
        at, height, width = frame
        place = top, left, tall, wide = box(height, width)
        upper = data.copy()
        upper[at : at + 2] = divmod(min(height, top + tall + BELOW), 256)
        with suppress(ValueError):  # what it cannot decode
            pixels = simplejpeg.decode_jpeg(upper, strict=False)[top : top + tall, left : left + wide]
            return torch.from_numpy(pixels).permute(2, 0, 1)
    image = _read(data, path, exif, background)
    top, left, tall, wide = place if frame else box(*image.shape[1:])
    return image[:, top : top + tall, left : left + wide]


def bounded(path: Path, side: int, exif: bool = False, background: Colour | None = None) -> np.ndarray:
    """The content of an image's file, uint8; where its short side is longer than `side` pixels, that of a JPEG (quality
    `QUALITY`, 4:2:0) of what `read_image` gives, resized to that (antialiased bilinear). Raises as `read_image`."""
    data = _content(path)
    frame = _frame(data)
    height, width = frame[1:] if frame else _with_pil(data, path, lambda image: _size(image, exif))
    if min(height, width) <= side:
        return data
    from torchvision.transforms.v2.functional import resize

    image = _read(data, path, exif, background)
    smaller = resize(image, [side]).permute(1, 2, 0).contiguous().numpy()
    return np.frombuffer(bytearray(simplejpeg.encode_jpeg(smaller, QUALITY, colorsubsampling="420")), np.uint8)


def jpeg(path: Path, background: Colour | None = None, data: np.ndarray | None = None) -> tuple[np.ndarray, int, int]:
    """A JPEG that any decoder takes, uint8, its height and width: the file's content, or, where that is another format
    or a rare kind of JPEG, what `read_image` gives, with quality 95 and 4:4:4. Raises as that does."""
    data = _content(path) if data is None else data
    frame = _frame(data)
    if frame is not None:
        return data, *frame[1:]
    image = _read(data, path, False, background).permute(1, 2, 0).contiguous().numpy()
    return np.frombuffer(bytearray(simplejpeg.encode_jpeg(image, 95)), np.uint8), *image.shape[:2]


def image_size(path: Path, exif: bool = False) -> tuple[int, int]:
    """Height and width in pixels of what `read_image` gives, from the file's header. Raises as that does."""
    return _with_pil(None, path, lambda image: _size(image, exif))


def image_notes(path: Path, exif: bool = False, background: Colour | None = None, strict: bool = False) -> list[str]:
    """What is handled where `read_image` reads this file, or should be looked at; nothing for most files.

    Args:
        path, exif, background: as of `read_image`.
        strict: see `check_jpeg`.

    Raises:
        UnreadableSample: as `read_image`, and with strict as `check_jpeg`.
    """
    if strict:
        check_jpeg(path)
    return _with_pil(None, path, lambda image: _notes(image, exif, background))


def check_jpeg(path: Path) -> None:
    """Raises UnreadableSample where a JPEG's decoder warns of damage, which shows as wrong pixels and stops no other
    decoder. Other formats carry checksums, or are not looked at."""
    data = _content(path).tobytes()
    if data.startswith(JPEG):
        try:
            simplejpeg.decode_jpeg(data, strict=True)
        except ValueError as error:
            raise UnreadableSample(f"{error} ({path})") from error


def checked_background(background: Colour | None) -> tuple[int, ...] | None:
    """Raises UserError for what is no colour."""
    if background is None:
        return None
    values = tuple(background) if isinstance(background, Sequence) else ()
    if len(values) != 3 or not all(type(value) is int and 0 <= value <= 255 for value in values):
        raise UserError(f"background={background}: give null or three whole numbers from 0 to 255, [r,g,b]")
    return values


def _content(path: Path) -> np.ndarray:
    try:
        data = archive.read(path)
    except OSError as error:
        raise UnreadableSample(f"{error.strerror or error} ({path})") from error
    if data.size == 0:
        raise UnreadableSample(f"the file is empty ({path})")
    return data


def _read(data: np.ndarray, path: Path, exif: bool, background: Colour | None) -> Tensor:
    # torchvision turns no WebP, and lays nothing on a background
    webp = exif and data[8:12].tobytes() == b"WEBP"
    laid = background is not None and data[:2].tobytes() != JPEG
    image = None if webp or laid else _decode(torch.from_numpy(data), exif)
    if image is None:
        return _with_pil(data, path, lambda image: _pixels(image, exif, background))
    return image


def _frame(data: np.ndarray) -> tuple[int, int, int] | None:
    """Of a JPEG of which the upper rows can be decoded alone (8 bits a colour, one scan from top to bottom, whole):
    where its height stands, height and width. ITU-T T.81, Annex B."""
    if data[:2].tobytes() != JPEG or data[-2:].tobytes() != END:
        return None
    bytes_, at, frame = memoryview(data), 2, None
    while at + 9 < len(bytes_) and bytes_[at] == 0xFF and bytes_[at + 1] not in (0xFF, SCAN):
        if bytes_[at + 1] in SEQUENTIAL and bytes_[at + 4] == 8 and bytes_[at + 9] in (1, 3):
            frame = at
        at += 2 + 256 * bytes_[at + 2] + bytes_[at + 3]
    if frame is None or at + 4 >= len(bytes_) or bytes_[at + 1] != SCAN or bytes_[at + 4] != bytes_[frame + 9]:
        return None
    height, width = (256 * bytes_[frame + k] + bytes_[frame + k + 1] for k in (5, 7))
    return (frame + 5, height, width) if height else None


def _decode(data: Tensor, exif: bool) -> Tensor | None:
    """None for what is left to PIL: formats unknown to torchvision, 16 bits a channel, more than one frame, damage."""
    try:
        image = torchvision.io.decode_image(data, torchvision.io.ImageReadMode.RGB, apply_exif_orientation=exif)
    # AttributeError: torchvision has announced that a later release will leave its decoders out.
    except (RuntimeError, AttributeError):
        return None
    if image.dtype != torch.uint8 or image.ndim != 3:
        return None
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1) if exif else image


def _with_pil(data: np.ndarray | None, path: Path, use: Callable[[Image.Image], Any]) -> Any:
    """data: the file's content, where that has been read."""
    try:
        file = archive.open_file(path) if data is None else io.BytesIO(data.tobytes())
        with file, Image.open(file) as image:
            return use(image)
    except Image.UnidentifiedImageError as error:
        with archive.open_file(path) as opened:
            tiff = opened.read(4) in TIFF
        what = "a TIFF of a kind that PIL does not read; convert it to 8 or 16 bits" if tiff else "not an image"
        raise UnreadableSample(f"{what} ({path})") from error
    except UnreadableSample:
        raise
    # PIL's plug-ins let many kinds of exception out of a damaged file (OSError, SyntaxError, ValueError, struct.error).
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise UnreadableSample(f"{reason} ({path})") from error


def _pixels(image: Image.Image, exif: bool, background: Colour | None) -> Tensor:
    """As `read_image`. Raises ValueError for numbers without a range."""
    if exif and _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        image = _eight_bits(image)
    if image.mode == "LAB":
        from PIL import ImageCms

        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    if background is not None and image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (*background, 255))
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    if not _is_deep(image):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit or signed whole numbers"
        raise ValueError(f"pixels that are {kind}, which have no defined range: convert it to 8 or 16 bits")
    tags = getattr(image, "tag_v2", {})
    largest = 2 ** tags.get(BITS, (16,))[0] - 1  # 12 bits in TIFF
    scaled = np.round(np.asarray(image).astype(np.float32) * (255 / largest)).astype(np.uint8)
    return Image.fromarray(255 - scaled if tags.get(PHOTOMETRIC) == 0 else scaled)


def _is_deep(image: Image.Image) -> bool:
    """Whether it has up to 16 bits a channel, unsigned. PIL keeps PNG's and PGM's in its mode for 32 bits."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1, as it lies, also where the tag is missing or damaged."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # whatever a damaged tag makes PIL say
        return 1
    return value if value in range(1, 9) else 1


def _size(image: Image.Image, exif: bool) -> tuple[int, int]:
    turned = exif and image.format != "TIFF" and _orientation(image) >= 5
    return (image.width, image.height) if turned else (image.height, image.width)


def _notes(image: Image.Image, exif: bool, background: Colour | None) -> list[str]:
    seen_through = image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255
    turned = image.format != "TIFF" and _orientation(image) != 1
    notes = {
        "with more than 8 bits a channel, scaled to 8": _is_deep(image) or ";16" in str(image.tile),
        f"in other colours ({image.mode}), converted": image.mode in CONVERTED,
        "of several pictures, the first taken": getattr(image, "n_frames", 1) > 1,
        "turned as their EXIF tag says": turned and exif,
        "to be turned, as their EXIF tag says, and left as they lie (data.exif=true turns them)": turned and not exif,
        "transparent, laid on data.background": seen_through and background is not None,
        "transparent, their hidden colours show (data.background=[255,255,255], say)": (
            seen_through and background is None
        ),
    }
    return [note for note, found in notes.items() if found]
