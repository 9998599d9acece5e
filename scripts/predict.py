"""What a trained network sees in pictures and videos of yours:

    python scripts/predict.py checkpoint=RUN_FOLDER input=IMAGE_OR_FOLDER_OR_VIDEO [out=predictions] [folded=false]
                              [batch=16] [key=value ...]

Prints a table, and writes OUT/predictions.json and every picture with its prediction drawn on it: OUT/NAME.png of an
image, OUT/NAME.mp4 of a video (of a folder, all that are in it). What the checkpoint's task takes besides is given
likewise; for poses, boxes=FILE.json with person=CLASS and box_score=0.3, where a detector's run may stand for the file:
boxes=FCOS_RUN. Files that cannot be read are named and left out, and of a damaged video the frames before the damage are
shown. Exit codes: 0; 1 where no file could be read; 2 a mistake in the arguments.
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from tdaf.cli.arguments import apart, flag, given, main, pictures
from tdaf.errors import RunError, UserError
from tdaf.media.suffixes import is_video

if TYPE_CHECKING:
    from tdaf.cli.prediction import Found

OWN = ("checkpoint", "input", "out", "folded", "batch")
SHOWN = 30  # lines of the table


def predict(arguments: list[str]) -> int:
    arguments, options = apart(arguments, OWN)
    own, overrides = given(arguments, OWN, {"protocol": "task.protocol"})
    out = Path(own["out"] or "predictions").expanduser()
    batch, folded = own["batch"] or "16", flag("folded", own["folded"])
    if not batch.isdigit() or int(batch) == 0:
        raise UserError(f"batch={batch}: give a whole number above 0")
    paths, base = _files(own["input"], out)

    from tdaf.cli import prediction, trained  # torch takes seconds to import; a mistake above needs none of it

    run = trained.read(own["checkpoint"], overrides)
    task = run.task()
    prediction.taken(task, options)  # refuses them before a detector has worked for them
    if _is_checkpoint(options.get("boxes", "")):
        options["boxes"] = _detected(options["boxes"], options.get("person", "person"), paths, out, int(batch))
    inputs = task.predict_dataset(paths, **prediction.taken(task, options))
    _make(out)
    said, bad = prediction.answered(run, task, inputs, int(batch), folded)
    found = prediction.drawn(task, inputs, said, bad, {path: out / _target(path.relative_to(base)) for path in paths})
    files = {str(path) for path, _, _ in found}
    for name, why in {**{str(path): why for path, why in inputs.pictures.faults.items()}, **bad}.items():
        print(f"{'in part' if name in files else 'left out'} {name}: {why}", file=sys.stderr)
    if not files:
        raise RunError(f"not one of {len(paths)} files could be read")
    with prediction.writing(out):
        (out / "predictions.json").write_text(json.dumps(task.to_json(found), indent=2) + "\n")
    _print(found, base)
    print(f"{out / 'predictions.json'}, and {len(files)} of {len(paths)} files drawn in {out}")
    return 0


def _is_checkpoint(boxes: str) -> bool:
    return boxes.endswith(".pt") or bool(boxes) and Path(boxes).is_dir()


def _make(out: Path) -> None:
    """Only once nothing is wrong with what was asked, and before the network has worked for nothing."""
    from tdaf.cli import prediction

    with prediction.writing(out):
        out.mkdir(parents=True, exist_ok=True)


def _detected(checkpoint: str, person: str, paths: list[Path], out: Path, batch: int) -> str:
    """OUT/boxes.json, what a detector's run says of the same pictures."""
    from tdaf.cli import prediction, trained

    run = trained.read(checkpoint, [])
    task = run.task()
    if person not in task.classes:
        known = ", ".join(task.classes[:8]) + (", ..." if len(task.classes) > 8 else "")
        raise UserError(f"boxes={checkpoint}: this run knows no {person}; give person=NAME, one of {known}")
    inputs = task.predict_dataset(paths)
    _make(out)
    said, _ = prediction.answered(run, task, inputs, batch, folded=False)
    pictures = inputs.pictures
    found = [(pictures.file(place), pictures.frame(place), said.get(place, [])) for place in range(len(pictures))]
    target = out / "boxes.json"
    with prediction.writing(target):
        target.write_text(json.dumps(task.to_json(found), indent=2) + "\n")
    return str(target)


def _files(text: str | None, out: Path) -> tuple[list[Path], Path]:
    """`pictures`, none of which is to be written over."""
    if not text:
        raise UserError("give input=IMAGE, input=VIDEO or input=FOLDER")
    paths, base = pictures(text, out)
    taken = {(out / _target(path.relative_to(base))).resolve() for path in paths} & {path.resolve() for path in paths}
    if taken:
        raise UserError(f"out={out}: what is drawn would be written over {min(taken)}; give another folder")
    return paths, base


def _target(path: Path) -> Path:
    """The whole name stays, as a.jpg and a.png may lie side by side."""
    ending = ".mp4" if is_video(path) else ".png"
    return path if is_video(path) and path.suffix == ending else path.with_name(path.name + ending)


def _print(found: Found, base: Path) -> None:
    """One row a file: the texts of its answers, of a video those in its middle."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(Column("file", overflow="fold"), "prediction")
    files = [list(group) for _, group in groupby(found, lambda entry: entry[0])]
    for entries in files[:SHOWN]:
        path, frame, answers = entries[len(entries) // 2]
        text = "; ".join(answer["text"] for answer in answers if "text" in answer) or f"{len(answers)} found"
        place = "" if frame is None else f"frame {frame} of {len(entries)}: "
        table.add_row(Text(str(path.relative_to(base))), Text(place + text))
    Console().print(table)
    if len(files) > SHOWN:
        print(f"and {len(files) - SHOWN} files more")


if __name__ == "__main__":
    sys.exit(main(predict, __doc__))
