"""The page that shows an evaluation's mistakes: one HTML file with its pictures inside, without network or script.

Tasks make its sections of these parts (`report` in tdaf/task.py); texts are escaped here.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from html import escape
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tdaf.errors import UnreadableSample

PICTURES = 24  # mistakes that are shown as pictures
PAIRS = 20  # of classes most often taken for one another, that are listed
CELLS = 30  # classes up to which the confusion matrix is a table; with more it is a picture of a pixel a cell
SIDE = 288  # pixels of a picture's long side on the page; a strip of frames is as wide as the page
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")  # Paul Tol's bright scheme
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1200px; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums }
th, td { border: 1px solid #ddd; padding: 2px 8px; text-align: left } td.n { text-align: right }
figure { display: inline-block; margin: 0 12px 16px 0; vertical-align: top }
figure img { display: block; max-width: 100% }
figcaption { font-size: 13px; max-width: 288px; overflow-wrap: anywhere }
.wide img { width: 1152px } .wide figcaption { max-width: none }
.scroll { overflow-x: auto } .key { display: inline-block; width: 12px; height: 12px; margin: 0 4px 0 12px }
.name { white-space: nowrap } .bar { display: flex; width: 320px; height: 14px } p { max-width: 80ch }
"""


def page(title: str, lines: Sequence[str], sections: Mapping[str, str]) -> str:
    """The whole file. sections: HTML by heading."""
    body = "".join(f"<h2>{escape(heading)}</h2>\n{html}\n" for heading, html in sections.items())
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    intro = "".join(map(paragraph, lines))
    intro = f"<h1>{escape(title)}</h1>{intro}"
    return f"<!DOCTYPE html>\n<html lang=en><head>{head}</head><body>\n{intro}\n{body}</body></html>\n"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def table(rows: Sequence[Sequence[Any]]) -> str:
    """The first row is the heading. A float has one digit, and a dash stands for NaN; `Markup` goes in as it is."""
    head = "".join(f"<th>{escape(str(name))}</th>" for name in rows[0])
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows[1:])
    return f"<div class=scroll><table><tr>{head}</tr>{body}</table></div>"


class Markup(str):
    """HTML already."""


def _cell(value: Any) -> str:
    if isinstance(value, Markup):
        return f"<td>{value}</td>"
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    return f"<td class=n>{'-' if value != value else f'{value:.1f}' if isinstance(value, float) else value}</td>"


def figure(picture: Tensor, caption: str, wide: bool = False) -> str:
    """A picture, uint8 RGB (3, H, W), as JPEG inside the page."""
    from torchvision.io import encode_jpeg

    size = "" if wide else f"{'width' if picture.shape[2] > picture.shape[1] else 'height'}={SIDE}"
    shown = _inline(encode_jpeg(picture.cpu().contiguous(), 85), "jpeg", size)
    return f"<figure{' class=wide' * wide}>{shown}<figcaption>{escape(caption)}</figcaption></figure>"


def bar(shares: Sequence[float]) -> Markup:
    """Parts of 1 in their colours, side by side; `legend` names them."""
    parts = (
        f'<div style="width:{100 * share:.2f}%;background:{colour}"></div>'
        for share, colour in zip(shares, COLOURS, strict=False)
    )
    return Markup(f"<div class=bar>{''.join(parts)}</div>")


def legend(names: Sequence[str]) -> str:
    key = "<span class=name><span class=key style=background:{}></span>{}</span>"
    return f"<p>{' '.join(map(key.format, COLOURS, map(escape, names)))}</p>"


def curves(named: Mapping[str, np.ndarray], x: str, y: str) -> str:
    """Curves over 0..1 in both directions, as SVG.

    Args:
        named: by name (N,) values, of x evenly from 0 to 1.
        x, y: the axes' names.
    """
    width, height, left, top = 560, 360, 50, 10

    def at(along: float, up: float) -> str:
        return f"{left + along * width:.1f},{top + (1 - up) * height:.1f}"

    grid = ""
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1):
        (x0, y0), (x1, y1) = at(tick, 0).split(","), at(0, tick).split(",")
        grid += f'<path d="M{at(tick, 0)}L{at(tick, 1)}M{at(0, tick)}L{at(1, tick)}" stroke="#e4e4e4"/>'
        grid += f'<text x="{x0}" y="{float(y0) + 18}" text-anchor="middle">{tick:g}</text>'
        grid += f'<text x="{float(x1) - 8}" y="{float(y1) + 4}" text-anchor="end">{tick:g}</text>'
    lines = ""
    for colour, values in zip(COLOURS, named.values(), strict=False):
        points = " ".join(map(at, np.linspace(0, 1, len(values)), values))
        lines += f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
    names = f'<text x="{left + width / 2}" y="{top + height + 36}" text-anchor="middle">{escape(x)}</text>'
    names += f'<text transform="translate(14,{top + height / 2})rotate(-90)" text-anchor="middle">{escape(y)}</text>'
    size = f'width="{left + width + 20}" height="{top + height + 45}" font-size="12" fill="#444"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{grid}{lines}{names}</svg>{legend(list(named))}'


class Answer(NamedTuple):
    """What was said of one sample. probability: of the class that was said, in 0..1."""

    index: int
    label: int
    said: int
    probability: float


def classified(
    answers: Sequence[Answer],
    classes: Sequence[str],
    picture: Callable[[int], Tensor],
    name: Callable[[int], str],
    wide: bool = False,
) -> dict[str, str]:
    """The sections of a task of classes: confusion matrix, pairs most often confused, most confident mistakes.

    Args:
        answers: one a sample.
        picture, name: of a sample, from its index; what raises UnreadableSample is left out.
        wide: whether pictures are strips.
    """
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(matrix, tuple(np.array([(a.label, a.said) for a in answers]).T), 1)
    sections = {"Confusion matrix": _matrix(matrix, classes)}
    wrong = matrix * (1 - np.eye(len(classes), dtype=np.int64))
    most = [divmod(int(k), len(classes)) for k in np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]]
    totals = matrix.sum(1)
    pairs = [
        (classes[a], classes[b], int(wrong[a, b]), float(100 * wrong[a, b] / totals[a])) for a, b in most if wrong[a, b]
    ]
    sections["Most often confused"] = table([("class", "taken for", "samples", "% of the class"), *pairs])
    shown = []
    for answer in sorted((a for a in answers if a.label != a.said), key=lambda a: -a.probability)[:PICTURES]:
        with suppress(UnreadableSample):
            text = f"{classes[answer.said]} {answer.probability:.0%}, is {classes[answer.label]}: {name(answer.index)}"
            shown.append(figure(picture(answer.index), text, wide))
    mistakes = len(answers) - int(matrix.trace())
    said = paragraph(f"{mistakes} of {len(answers)} samples are mistaken; the most confident ones:")
    return {**sections, "Most confident mistakes": said + "".join(shown)}


def _matrix(matrix: np.ndarray, classes: Sequence[str]) -> str:
    """Rows: what samples are, shares of which make the colour; columns: what was said."""
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    said = paragraph("Rows are the classes that samples are of, columns those that were said.")
    if len(classes) <= CELLS:
        rows = [
            f"<tr><th>{escape(name)}</th>"
            + "".join(
                f'<td class=n style="background:rgba(68,119,170,{0.85 * share:.2f})">{count or ""}</td>'
                for count, share in zip(counts, row, strict=True)
            )
            + "</tr>"
            for name, counts, row in zip(classes, matrix.tolist(), shares.tolist(), strict=True)
        ]
        head = "".join(f"<th>{escape(name)}</th>" for name in classes)
        return f"{said}<div class=scroll><table><tr><th></th>{head}</tr>{''.join(rows)}</table></div>"
    from torchvision.io import encode_png

    pixels = torch.from_numpy((255 - 255 * np.sqrt(shares)).astype(np.uint8))[None]
    shown = f'width={max(600, len(classes))} style="image-rendering:pixelated"'
    return f"{said}{_inline(encode_png(pixels), 'png', shown)}"


def _inline(file: Tensor, kind: str, attributes: str) -> str:
    data = base64.b64encode(file.numpy().tobytes()).decode()
    return f'<img {attributes} alt="" src="data:image/{kind};base64,{data}">'
