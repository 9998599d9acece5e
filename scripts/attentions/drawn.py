"""The pictures themselves: a sheet an input and, where it is asked for, a film of sheets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from attentions.source import Model, Shot, Shots
from PIL import Image
from torch import Tensor

from tdaf.cli.prediction import writing
from tdaf.engine.log import Bar
from tdaf.engine.pictures import attention_panels
from tdaf.errors import UnreadableSample
from tdaf.media.attention_sheet import Panel, sheet
from tdaf.media.video import VideoWriter
from tdaf.model.maps import mask_eta, mask_strides

SEVERAL = 0.6  # of a tile's side where a sheet has several panels


@dataclass(frozen=True)
class Look:
    """style, scale and tile as `sheet` has them; film: whether all of a video is drawn as well."""

    style: str
    scale: str
    tile: int
    film: bool


def draw(model: Model, shots: Shots, out: Path, look: Look) -> tuple[list[Path], dict[str, str]]:
    """(the files that were written, what could not be read or not to its end with the reason)."""
    made, bad = [], dict(shots.faults)
    with _bar(len(shots.shots)) as bar:
        for shot in shots.shots:
            panels = list(_panels(model, shots, shot, _places(model, shots, shot), bad))
            if panels:
                target = out / shot.target.with_name(shot.target.name + ".png")
                tile = look.tile if len(panels) == 1 else max(1, round(SEVERAL * look.tile))
                _save(_sheet(model, panels, shot.title, look, tile), target)
                made.append(target)
                if look.film and shot.fps is not None:
                    made.append(_filmed(model, shots, shot, out, look, bad))
            bar.advance()
    return made, bad


def _sheet(model: Model, panels: list[Panel], title: str, look: Look, tile: int) -> Tensor:
    strides, eta = mask_strides(model.network), mask_eta(model.network)
    return sheet(panels, strides, eta, title, look.style, look.scale, tile)


def _places(model: Model, shots: Shots, shot: Shot) -> list[tuple[int, list[int] | None]]:
    """(sample, its frames) of what is drawn; None: no clip, or the moments that a clip is usually drawn at."""
    if shot.moments is None:
        return [(index, None) for index in shot.indices]
    length = _length(model, shots, shot)
    total = len(shot.indices) * (length or 1)
    count = min(shot.moments, total)
    places = [divmod(int((moment + 0.5) / count * total), length or 1) for moment in range(count)]
    return [
        (shot.indices[place], [frame for _, frame in group] if length else None)
        for place, group in groupby(places, lambda entry: entry[0])
    ]


def _length(model: Model, shots: Shots, shot: Shot) -> int:
    """Frames of a clip; 0 for images, and where no sample can be read."""
    for index in shot.indices if model.dims == 3 else ():
        try:
            return shots.dataset[index]["input"].shape[-3]
        except UnreadableSample:
            continue
    return 0


def _panels(
    model: Model, shots: Shots, shot: Shot, places: Iterable[tuple[int, list[int] | None]], bad: dict[str, str]
) -> Iterator[Panel]:
    """None of a sample that cannot be read, which `bad` then names."""
    dataset = shots.dataset
    for index, frames in places:
        try:
            x = dataset.collate([dataset[index]])["input"]
        except UnreadableSample as error:
            bad[dataset.name(index)] = str(error)
            continue
        if len(shot.indices) == 1:
            title = ""
        elif shot.moments is not None:
            title = Path(dataset.name(index)).name
        else:
            title = f"{shot.indices.index(index) + 1} of {len(shot.indices)}"
        yield from attention_panels(x, model.masks(x), 0, frames, title)


def _filmed(model: Model, shots: Shots, shot: Shot, out: Path, look: Look, bad: dict[str, str]) -> Path:
    """All of a video, a sheet a frame of what the network saw, at such a rate that it lasts as long as the video."""
    target = out / shot.target.with_name(shot.target.name + ".mp4")
    length = _length(model, shots, shot)
    shown = sum(len(shots.dataset.shown(index)) for index in shot.indices)
    fps = shot.fps * len(shot.indices) * (length or 1) / shown
    with writing(target), VideoWriter(target, fps) as film, _bar(len(shot.indices)) as bar:
        for index in shot.indices:
            for panel in _panels(model, shots, shot, [(index, list(range(length)) or None)], bad):
                film.write(_sheet(model, [panel], shot.title, look, look.tile))
            bar.advance()
    return target


def _save(picture: Tensor, target: Path) -> None:
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(target)


@contextmanager
def _bar(total: int) -> Iterator[Bar]:
    bar = Bar("attention", total)
    try:
        yield bar
    finally:
        bar.stop()
