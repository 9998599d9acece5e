"""Videos as folders of images, one a frame, as kenshohara/3D-ResNets-PyTorch makes them (image_00001.jpg)."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tdaf.errors import UnreadableSample
from tdaf.media.clip import Wanted
from tdaf.media.image import read_image

IMAGE = re.compile(r"(?:.*\D)?(\d+)\.(?:jpe?g|png)", re.IGNORECASE)


def read_frames(folder: Path, wanted: Wanted, short_side: int | None = None) -> Tensor:
    """As `read_clip` does for a video file: uint8 RGB (T, 3, H, W), frames counted from 0 in the order of the numbers
    in their names. Raises UnreadableSample, also for frames of unequal size and for a gap in the numbers."""
    names = _names(folder)
    places = list(wanted(len(names)) if callable(wanted) else wanted)
    if places and max(places) >= len(names):
        raise UnreadableSample(f"it has {len(names)} frames, and so no frame {max(places)} ({folder})")
    images = {place: _scaled(read_image(folder / names[place]), short_side) for place in set(places)}
    if len({image.shape for image in images.values()}) > 1:
        raise UnreadableSample(f"its frames are not of one size ({folder})")
    return torch.stack([images[place] for place in places])


def count_images(folder: Path) -> int:
    return len(_names(folder))


def read_all(folder: Path) -> int:
    """Reads every frame, one after the other; returns their number. Raises UnreadableSample."""
    names = _names(folder)
    for name in names:
        read_image(folder / name)
    return len(names)


def _names(folder: Path) -> list[str]:
    try:
        found = {int(match[1]): match[0] for match in map(IMAGE.fullmatch, os.listdir(folder)) if match}
    except OSError as error:
        raise UnreadableSample(f"{error.strerror} ({folder})") from error
    if not found:
        raise UnreadableSample(f"no frame in it, such as image_00001.jpg ({folder})")
    first, last = min(found), max(found)
    if last - first + 1 != len(found):
        gap = next(number for number in range(first, last) if number not in found)
        raise UnreadableSample(f"{last - first + 1 - len(found)} frames are missing, number {gap} first ({folder})")
    return [found[number] for number in sorted(found)]


def _scaled(image: Tensor, short_side: int | None) -> Tensor:
    height, width = image.shape[-2:]
    short = min(height, width)
    if short_side is None or short == short_side:
        return image
    size = (height * short_side // short, width * short_side // short)
    return F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
