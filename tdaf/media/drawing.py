"""Predictions drawn on their pictures. Pictures are uint8 RGB (3, H, W); small ones come back enlarged by a whole
number, with what is drawn on them, so that lines and texts can be seen.

PIL draws, as it does under torchvision.utils; that has no labels that stay inside the picture, and one colour for all
persons.
"""

from __future__ import annotations

import colorsys
import functools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 192  # pixels of the short side below which a picture is enlarged
LINES = 60  # of a histogram
GOLDEN = 0.6180339887  # of a turn from hue to hue: however many colours are taken, their hues lie spread out

Colour = tuple[int, int, int]

# where fonts are that have what Pillow's own lacks: packages (pip install 'tdaf[fonts]'), then folders of the system
FONT_PACKAGES = ("manimgx_fonts", "manimgx_fonts_cjk")
FONT_FOLDERS = (
    "/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts", "/Library/Fonts",
    "/System/Library/Fonts", "C:/Windows/Fonts",
)  # fmt: skip
WORDS = re.compile(r"[^\x00-\x7f]+(?: +[^\x00-\x7f]+)*|[\x00-\x7f]+")  # of letters beyond ASCII, and the rest
STYLED = ("bold", "italic", "oblique", "mono", "black", "light", "thin", "condensed")


class Lettering:
    """Texts of one size in Pillow's own font and, for letters that it lacks, in the first font here that has them;
    joined and from right to left as their script is written. size: in pixels."""

    def __init__(self, size: int) -> None:
        self.size = size

    @property
    def height(self) -> int:
        return sum(_font(None, self.size).getmetrics())

    def length(self, text: str) -> float:
        return sum(font.getlength(run) for run, font in self._runs(text))

    def fitted(self, text: str, width: float) -> str:
        """Cut in the middle of the name, so that the probability at its end stays."""
        while self.length(text) > width and len(text) > 12:
            middle = (len(text) - 5) // 2
            text = text[: middle - 2] + ".." + text[middle + 2 :]
        return text

    def write(
        self, draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, fill: Colour | str, anchor: str = "lm"
    ) -> None:
        x, y = at
        for run, font in self._runs(text):
            draw.text((x, y), run, fill=fill, font=font, anchor=anchor)
            x += font.getlength(run)

    def _runs(self, text: str) -> Iterator[tuple[str, ImageFont.FreeTypeFont]]:
        """Parts of the text, each with its font."""
        for words in WORDS.findall(text):
            yield words, _font(None if words.isascii() else _font_with(words), self.size)


@functools.cache
def _font_with(words: str) -> Path | None:
    """The first font that has all letters; None for Pillow's own, which stands in where none has them."""
    for file in (None, *_font_files()):
        with suppress(OSError, ValueError):  # a font that FreeType cannot open
            if all(_has(_font(file, 16), letter) for letter in words):
                return file
    print(f"no font here has all of {words!a}, boxes stand for the rest: pip install 'tdaf[fonts]'", file=sys.stderr)
    return None


@functools.lru_cache(maxsize=64)
def _font(file: Path | None, size: int) -> ImageFont.FreeTypeFont:
    if file is None:
        return ImageFont.load_default(size)
    font = ImageFont.truetype(file, size)
    with suppress(OSError):  # of variable weight, which may begin with the thinnest, or not
        font.set_variation_by_name("Regular")
    return font


def _has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether it is drawn as something else than what stands for all that a font lacks."""
    drawn, lacking = font.getmask(letter), font.getmask("\U0010fffe")
    return drawn.size != lacking.size or bytes(drawn) != bytes(lacking)


@functools.cache
def _font_files() -> list[Path]:
    """Of packages, then of the system, plain ones first."""
    found = [place for name in FONT_PACKAGES if (spec := find_spec(name)) for place in spec.submodule_search_locations]
    files = []
    for folder in (*found, *FONT_FOLDERS):
        inside = (
            path for path in Path(folder).expanduser().rglob("*") if path.suffix.lower() in (".ttf", ".otf", ".ttc")
        )
        files += sorted(inside, key=lambda path: (any(style in path.name.lower() for style in STYLED), path.name))
    return files


def colour(number: int) -> Colour:
    """RGB colour `number`, 0 or more: hues by the golden section, with three lightnesses in turn."""
    rgb = colorsys.hls_to_rgb(number * GOLDEN % 1, (0.5, 0.72, 0.34)[number % 3], 1.0)
    return tuple(round(255 * part) for part in rgb)


def labelled(picture: Tensor, text: str) -> Tensor:
    """`text` in white on a dark strip at the picture's foot."""
    image, _ = _canvas(picture)
    size = max(14, image.height // 16)
    letters, draw = Lettering(size), ImageDraw.Draw(image, "RGBA")
    draw.rectangle((0, image.height - 3 * size // 2, image.width, image.height), fill=(0, 0, 0, 190))
    start = (size // 2, image.height - 3 * size // 4)
    letters.write(draw, start, letters.fitted(text, image.width - size), "white")
    return _tensor(image)


def boxes(picture: Tensor, boxes: Tensor, texts: Sequence[str], colours: Sequence[Colour] | None = None) -> Tensor:
    """Boxes with labels on their upper edges, the first boxes above the later ones.

    Args:
        picture: uint8 RGB (3, H, W).
        boxes: (K, 4) x1 y1 x2 y2 in pixels, 0 the left edge of the first.
        texts: one a box, "" for none.
        colours: one a box; without them, the palette in turn.
    """
    image, factor = _canvas(picture)
    draw, width = ImageDraw.Draw(image), _line_width(image)
    letters = Lettering(max(12, min(image.size) // 28))
    colours = [colour(number) for number in range(len(boxes))] if colours is None else colours
    edges = (boxes.detach().cpu().double() * factor).tolist()
    for (left, top, right, bottom), text, paint in reversed(list(zip(edges, texts, colours, strict=True))):
        left, right = (min(max(x, 0), image.width) for x in (left, right))
        top, bottom = (min(max(y, 0), image.height) for y in (top, bottom))
        if right - left < 1 or bottom - top < 1:
            continue  # outside the picture, or nothing to be seen of it
        draw.rectangle((left, top, right - 1, bottom - 1), outline=paint, width=width)
        if text:
            _label(draw, image.size, (left, top), text, paint, letters)
    return _tensor(image)


def skeletons(
    picture: Tensor,
    keypoints: Tensor,
    edges: Sequence[tuple[int, int]],
    colours: Sequence[Colour] | None = None,
    least: float = 0.0,
) -> Tensor:
    """Persons' key points, joined by lines.

    Args:
        picture: uint8 RGB (3, H, W).
        keypoints: (P, J, 3) x, y in pixels (0: the centre of the first) and score.
        edges: pairs of key points, 0-based, joined where both are drawn.
        colours: one a person; without them, the palette in turn.
        least: key points whose score is above it are drawn.
    """
    image, factor = _canvas(picture)
    draw, width = ImageDraw.Draw(image), _line_width(image)
    radius = width + 1
    colours = [colour(number) for number in range(len(keypoints))] if colours is None else colours
    for person, paint in zip(keypoints.detach().cpu().double(), colours, strict=True):
        points = [tuple(xy) for xy in ((person[:, :2] + 0.5) * factor - 0.5).tolist()]
        visible = (person[:, 2] > least).tolist()
        for a, b in edges:
            if visible[a] and visible[b]:
                draw.line((points[a], points[b]), fill=paint, width=width)
        for x, y in (point for point, seen in zip(points, visible, strict=True) if seen):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=paint, outline=_contrast(paint))
    return _tensor(image)


def dots(picture: Tensor, points: Tensor, radii: Tensor, colours: Sequence[Colour]) -> Tensor:
    """Filled circles in a picture of the same size. points (K, 2) x, y and radii (K,) in pixels."""
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    draw = ImageDraw.Draw(image)
    for (x, y), radius, paint in zip(points.tolist(), radii.tolist(), colours, strict=True):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=paint)
    return _tensor(image)


def heat(picture: Tensor, maps: Tensor) -> Tensor:
    """maps: (h, w) or (J, h, w) over the whole picture, of which the largest value counts: 0 leaves the picture as it
    is, and from there it glows red, yellow and, at 1 and above, white."""
    image, _ = _canvas(picture)
    values = maps.detach().float().cpu().reshape(-1, *maps.shape[-2:]).amax(0).nan_to_num().clamp(0, 1)
    size = (image.height, image.width)
    values = F.interpolate(values[None, None], size, mode="bilinear", align_corners=False)[0]
    glow = torch.cat([(3 * values - part).clamp(0, 1) for part in range(3)])
    return torch.lerp(_tensor(image).float(), 255 * glow, 0.85 * values).round().to(torch.uint8)


def _canvas(picture: Tensor) -> tuple[Image.Image, int]:
    """The picture to draw on, and how many times larger it is."""
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    factor = -(-SMALLEST // min(image.size))
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return image, factor


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def bars(title: str, counts: Mapping[str, int], width: int = 640) -> Tensor:
    """A histogram, a line a name. Of more than `LINES` names the most and the least frequent ones."""
    rows = list(counts.items())
    if len(rows) > LINES:
        rows = sorted(rows, key=lambda row: -row[1])
        half = LINES // 2
        rows = [*rows[:half], (f"... {len(rows) - 2 * half} between these", 0), *rows[-half:]]
    letters, most, left = Lettering(14), max([1, *counts.values()]), width // 3
    image = Image.new("RGB", (width, 20 * (len(rows) + 2)), "white")
    draw = ImageDraw.Draw(image)
    letters.write(draw, (8, 16), letters.fitted(f"{title} ({sum(counts.values())})", width - 16), "black")
    for place, (name, count) in enumerate(rows):
        y = 20 * (place + 2)
        letters.write(draw, (8, y), letters.fitted(name, left - 16), "black")
        length = round((width - left - 80) * count / most)
        draw.rectangle((left, y - 7, left + length, y + 6), fill=(68, 119, 170))
        letters.write(draw, (left + length + 6, y), "" if name.startswith("... ") else str(count), "black")
    return _tensor(image)


def _line_width(image: Image.Image) -> int:
    return max(2, round(min(image.size) / 150))


def _contrast(paint: Colour) -> Colour:
    """Black or white, whichever stands out more; the weights are those of BT.601's luma."""
    return (0, 0, 0) if 0.299 * paint[0] + 0.587 * paint[1] + 0.114 * paint[2] > 128 else (255, 255, 255)


def _label(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corner: tuple[float, float],
    text: str,
    paint: Colour,
    letters: Lettering,
) -> None:
    """On the box's upper edge; below it, or further left, where it would leave the picture. size: its width, height."""
    text = letters.fitted(text, size[0] - 6)
    width, height = round(letters.length(text)) + 6, letters.height + 2
    x, y = round(corner[0]), round(corner[1])
    x = max(0, min(x, size[0] - width))
    y = y - height if corner[1] >= height else min(y, size[1] - height)
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=paint)
    letters.write(draw, (x + 3, y + height / 2), text, _contrast(paint))
