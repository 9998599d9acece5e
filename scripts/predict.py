"""What a trained network sees in pictures of yours:

    python scripts/predict.py checkpoint=RUN_FOLDER input=IMAGE_OR_FOLDER [out=predictions] [folded=false] [batch=16]

Prints a table, and writes OUT/predictions.json and every picture with its prediction drawn on it. Files that cannot be read
are named and left out. Exit codes: 0; 1 where no file could be read; 2 a mistake in the arguments.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from configs.arguments import given, main
from tdaf.errors import RunError, UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")


def predict(arguments: list[str]) -> int:
    own, overrides = given(arguments, ("checkpoint", "input", "out", "folded", "batch"), {"protocol": "task.protocol"})
    paths, base = _files(own["input"])
    out = Path(own["out"] or "predictions")
    if not (own["batch"] or "16").isdigit() or own["batch"] == "0":
        raise UserError(f"batch={own['batch']}: give a whole number above 0")

    from configs import trained  # torch takes seconds to import; a mistake above needs none of it

    found = trained.read(own["checkpoint"], overrides)
    rows = _predicted(found, paths, base, out, int(own["batch"] or 16), own["folded"] == "true")
    _print(rows, base)
    target = out / "predictions.json"
    target.write_text(json.dumps({"checkpoint": str(found.path), "predictions": rows}, indent=2) + "\n")
    print(f"{target}, and {len(rows)} of {len(paths)} pictures in {out}")
    return 0 if rows else 1


def _files(given: str | None) -> tuple[list[Path], Path]:
    """The image files of `input`, and the folder that their names are relative to."""
    if not given:
        raise UserError("give input=IMAGE or input=FOLDER")
    place = Path(given).expanduser()
    if place.is_file():
        return [place], place.parent
    if not place.is_dir():
        raise UserError(f"input={given}: there is no such file or folder")
    paths = sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise UserError(f"input={given}: no image in this folder ({', '.join(SUFFIXES)})")
    return paths, place


def _predicted(found: Any, paths: list[Path], base: Path, out: Path, batch: int, folded: bool) -> list[dict[str, Any]]:
    import torch

    from configs.run import loading, validation
    from tdaf.engine.precision import Precision, float32
    from tdaf.model.fold import fold

    task = found.task()
    network = found.network(task)
    device = torch.device("cuda" if torch.cuda.is_available() and found.config["gpus"] != 0 else "cpu")
    precision = Precision("auto", device, found.config["trainer"]["channels_last"])
    network = precision.place(fold(network) if folded else network)
    dataset = task.inputs(paths)
    workers = {} if len(paths) > 4 * batch else {"workers": 0}
    loader = validation(dataset, batch, {**loading(found.config, device), **workers, "max_bad": len(paths)})
    rows = []
    for part in loader:
        if not len(part["index"]):
            continue
        with torch.inference_mode(), precision.autocast():
            outputs = float32(network(precision.move(part)["input"])).cpu()
        for place, (index, answer) in enumerate(zip(part["index"].tolist(), task.answers(outputs), strict=True)):
            picture = task.pictures(dataset.picture(index)[None], outputs[place : place + 1])[0]
            rows.append({"file": str(paths[index]), **answer, "picture": str(_save(picture, paths[index], base, out))})
    for name, reason in loader.bad.values():
        print(f"left out {name}: {reason}", file=sys.stderr)
    if not rows:
        raise RunError(f"not one of {len(paths)} files could be read")
    return rows


def _save(picture: Any, path: Path, base: Path, out: Path) -> Path:
    from PIL import Image

    target = out / path.relative_to(base).with_suffix(path.suffix + ".png")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(target)
    except OSError as error:
        raise UserError(f"out={out} cannot be written: {error.strerror or error}") from error
    return target


def _print(rows: list[dict[str, Any]], base: Path) -> None:
    """One row a file: the best classes with their probabilities."""
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column("file", overflow="fold"), *[str(place) for place in range(1, 6)])
    for row in rows:
        best = [f"{entry['class']} {entry['probability']:.1%}" for entry in row.get("top5", [])]
        table.add_row(str(Path(row["file"]).relative_to(base)), *best)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main(predict, __doc__))
