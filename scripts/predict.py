"""What a trained network sees in pictures and videos of yours:

    python scripts/predict.py checkpoint=RUN_FOLDER input=IMAGE_OR_FOLDER_OR_VIDEO [out=predictions] [folded=false]
                              [batch=16] [trust=MODULE] [key=value ...]

Prints a table, and writes OUT/predictions.json and every picture with its prediction drawn on it: OUT/NAME.png of an
image, OUT/NAME.mp4 of a video (of a folder, all that are in it). What the checkpoint's task takes besides is given
likewise; for poses, boxes=FILE.json with person=CLASS and box_score=0.3, where a detector's run may stand for the file:
boxes=FCOS_RUN. Files that cannot be read are named and left out, and of a damaged video the frames before the damage
are shown. trust: modules of yours that the run's settings may name. Exit codes: 0; 1 where no file could be read; 2 a
mistake in the arguments.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from tdaf.cli.evaluation import media_files, open_run, open_to_predict, write_pictures, write_text, writing
from tdaf.cli.script import Positive, main
from tdaf.errors import RunError, UnreadableSample, UserError
from tdaf.media.files import is_video
from tdaf.streams import Bar

if TYPE_CHECKING:
    from torch import Tensor

    from tdaf.engine.predict import Predictions
    from tdaf.task import Task

ROWS = 30  # of the table
Records = list[tuple[Path, int | None, list[dict[str, Any]]]]  # (file, frame, answers) of every picture drawn


def predict(
    *,
    checkpoint: Path,
    input: Path,
    out: Path = Path("predictions"),
    folded: bool = False,
    batch: Positive = 16,
    trust: list[str] | None = None,
    rest: list[str],
) -> None:
    paths, base = media_files(input, out)
    targets = {path: out / _target(path).relative_to(base) for path in paths}
    overwritten = {target.resolve() for target in targets.values()} & {path.resolve() for path in paths}
    if overwritten:
        raise UserError(f"out={out}: what is drawn would be written over {min(overwritten)}; give another folder")

    run, options = open_to_predict(checkpoint, rest, predict, trust or ())
    from tdaf.engine.predict import Predictor  # torch takes seconds to import; a mistake above needs none of it

    predictor = Predictor(run, folded=folded, batch=batch)
    missing = [name for name in ("postprocess", "draw", "to_json") if not hasattr(predictor.task, name)]
    if missing:
        raise UserError(f"{run.path}: its task does not predict: it has no {', '.join(missing)} (see tdaf/task.py)")
    detector = options.get("boxes")
    if isinstance(detector, str):
        options["boxes"] = detector = os.path.expanduser(detector)
    boxes = dataset = None
    if isinstance(detector, str) and (detector.endswith((".pt", ".onnx")) or os.path.isdir(detector)):
        boxes = Predictor(open_run(detector, trust=trust or ()), batch=batch)
        boxes.check_knows(options.get("person") or "person")
    else:
        dataset = predictor.task.predict_dataset(paths, **options)
    with writing(out):  # only once nothing is wrong with what was asked, and before a network has worked for nothing
        out.mkdir(parents=True, exist_ok=True)
    if boxes:
        options["boxes"] = boxes.document(paths)
        write_text(out / "boxes.json", json.dumps(options["boxes"], indent=2) + "\n")
        dataset = predictor.task.predict_dataset(paths, **options)
    predictions = predictor.predict(dataset)
    records, left_out = _draw(predictor.task, predictions, targets)
    files = {str(path) for path, _, _ in records}
    for name, why in left_out.items():
        print(f"{'in part' if name in files else 'left out'} {name}: {why}", file=sys.stderr)
    if not files:
        raise RunError(f"not one of {len(paths)} files could be read")
    write_text(out / "predictions.json", json.dumps(predictor.task.to_json(records), indent=2) + "\n")
    _print(records, base)
    print(f"{out / 'predictions.json'}, and {len(files)} of {len(paths)} files drawn in {out}")


def _draw(task: Task, predictions: Predictions, targets: dict[Path, Path]) -> tuple[Records, dict[str, str]]:
    """Draws every picture that can be read. Returns the pictures drawn, and by name what could not be read, or not to
    its end, with the reason."""

    media = predictions.media
    left_out = {str(path): why for path, why in media.faults.items()}
    left_out |= {predictions.name(picture): why for picture, why in predictions.unreadable.items()}
    records: Records = []
    with Bar("draw", len(media)) as bar:

        def drawn(pictures: Iterable[int]) -> Iterator[Tensor | tuple[Tensor, float | None]]:
            for picture in pictures:
                bar.advance()
                try:
                    image = None if picture in predictions.unreadable else media.read(picture)
                except UnreadableSample as error:
                    left_out[predictions.name(picture)] = str(error)
                    continue
                if image is not None:
                    records.append(predictions.of(picture))
                    painted = task.draw(image, records[-1][2])
                    yield painted if media.frame(picture) is None else (painted, media.stamp(picture))

        for path, pictures in groupby(range(len(media)), media.file):
            write_pictures(targets[path], drawn(pictures), media.fps(path) if is_video(path) else None)
    return records, left_out


def _target(path: Path) -> Path:
    """The whole name stays, as a.jpg and a.png may lie side by side."""
    ending = ".mp4" if is_video(path) else ".png"
    return path if is_video(path) and path.suffix == ending else path.with_name(path.name + ending)


def _print(records: Records, base: Path) -> None:
    """One row a file: the texts of its answers, of a video those in its middle."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(Column("file", overflow="fold"), "prediction")
    files = [list(group) for _, group in groupby(records, lambda record: record[0])]
    for of_file in files[:ROWS]:
        path, frame, answers = of_file[len(of_file) // 2]
        text = "; ".join(answer["text"] for answer in answers if "text" in answer) or f"{len(answers)} found"
        moment = "" if frame is None else f"frame {frame} of {len(of_file)}: "
        table.add_row(Text(str(path.relative_to(base))), Text(moment + text))
    Console().print(table)
    if len(files) > ROWS:
        print(f"and {len(files) - ROWS} files more")


if __name__ == "__main__":
    sys.exit(main(predict, __doc__))
