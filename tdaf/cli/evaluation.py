"""What the scripts do with a trained run: open it under other settings, show it files of the user's, evaluate it.

Imports nothing that takes seconds before it is needed, so that a mistake is told at once.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tdaf.build import hint
from tdaf.errors import RunError, UserError, refused_files
from tdaf.media.files import IMAGES, VIDEOS, files_below, left_out

if TYPE_CHECKING:
    from fractions import Fraction

    import torch
    from torch import Tensor

    from tdaf.engine.trained import Run

OF_THE_MACHINE = ("gpus", "seed")  # settings without a dot that a trained run may still change


def open_run(checkpoint: str | Path, overrides: Sequence[str] = (), trust: Sequence[str] = ()) -> Run:
    """`load_checkpoint`, with `key=value` overrides that are held against the run's settings. Raises UserError."""
    from tdaf.engine.trained import load_checkpoint

    return _overridden(load_checkpoint(checkpoint, trust=trust), overrides)


def open_to_predict(
    checkpoint: str | Path, words: Sequence[str], script: Callable[..., Any], trust: Sequence[str] = ()
) -> tuple[Run, dict[str, Any]]:
    """A run and the options of its task's `predict_dataset`, typed.

    Args:
        checkpoint: a checkpoint or run folder.
        words: `key=value`. Those that the signature of the task's `predict_dataset` has are its options, the others
            overrides of the run's settings; protocol=NAME is task.protocol=NAME.
        script: the script's function, whose settings a misspelt word may have meant.
        trust: see `load_checkpoint`.

    Raises:
        UserError: a word that is neither, a value of another kind, or what `load_checkpoint` refuses.
    """
    from tdaf.build import checked, found
    from tdaf.engine.trained import load_checkpoint

    run = load_checkpoint(checkpoint, trust=trust)
    task = found(str(run.settings["task"]["_target_"]), "task")
    predict_dataset = getattr(task, "predict_dataset", None) or getattr(run.task(), "predict_dataset", None)
    if predict_dataset is None:
        raise UserError(f"{run.path}: its task does not predict: it has no predict_dataset (see tdaf/task.py)")
    parameters = inspect.signature(predict_dataset).parameters
    known = [name for name in parameters if name not in ("self", "paths")]
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    options, overrides = {}, []
    for word in words:
        key, _, text = word.partition("=")
        if key in known or takes_all and key.isidentifier() and key not in ("protocol", *OF_THE_MACHINE):
            try:
                options[key] = yaml.safe_load(text)
            except yaml.YAMLError:
                options[key] = text
        elif key == "protocol":
            overrides.append(f"task.{word}")
        elif "." in key or key in OF_THE_MACHINE:
            overrides.append(word)
        else:
            there = hint(key, [*(name for name in inspect.signature(script).parameters if name != "rest"), *known])
            raise UserError(f"{word}: neither this script nor the checkpoint's task has a setting {key}; {there}")
    return _overridden(run, overrides), checked(predict_dataset, options, "predict", ("self", "paths"))


def media_files(given: Path, out: Path) -> tuple[list[Path], Path]:
    """The images and videos of a file or folder.

    Args:
        given: one file, or a folder, which is searched with all below it.
        out: where results are written; what lies in it is left out.

    Returns:
        The files in order, and the folder that their names are relative to. Folders below that may not be read are
        named on standard error.

    Raises:
        UserError: there are none, or `given` cannot be read.
    """
    with refused_files(f"input={given}"):
        if given.is_file():
            return [given], given.parent
        if not given.is_dir():
            raise UserError(f"input={given}: there is no such file or folder")
        os.scandir(given).close()
    if given.resolve() == out.resolve():
        raise UserError(f"out={out} is the input's own folder; give another one")

    def refused(error: OSError) -> None:
        print(f"left out {error.filename}: {error.strerror}", file=sys.stderr)

    names, others = files_below(given, (*IMAGES, *VIDEOS), onerror=refused, without=out)
    paths = sorted(path for path in map(given.joinpath, names) if path.is_file())
    for note, count in left_out(others, "images or videos").items():
        print(f"{count} {note}", file=sys.stderr)
    if not paths:
        raise UserError(f"input={given}: no image or video in this folder ({', '.join((*IMAGES, *VIDEOS))})")
    return paths, given


writing = functools.partial(refused_files, verb="written")


def write_text(target: Path, text: str) -> None:
    """A text file, in a folder that is made. Raises UserError where the disk refuses."""
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_pictures(
    target: Path, pictures: Iterable[Tensor | tuple[Tensor, float | None]], fps: Fraction | None = None
) -> None:
    """An image file or, with `fps`, a video; pictures are uint8 RGB (3, H, W), in a video also with the second at which
    they are shown. UserError where the disk refuses."""
    from PIL import Image

    from tdaf.media.clip import VideoWriter

    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if fps is None:
            for picture in pictures:
                Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(target)
            return
        with VideoWriter(target, fps) as video:
            for picture in pictures:
                video.write(*(picture if isinstance(picture, tuple) else (picture,)))


def evaluate_checkpoint(
    checkpoint: str | Path,
    overrides: Sequence[str],
    folded: bool = False,
    trust: Sequence[str] = (),
    out: Path | None = None,
    report: bool = False,
) -> int:
    """Evaluates on as many ranks as `gpus` says; prints the numbers and writes `evaluation-<protocol>.json`, with the
    overrides.

    Args:
        checkpoint: a checkpoint or run folder.
        overrides: `key=value`, of the run's settings.
        folded: with every batch norm folded into its convolution.
        trust: see `load_checkpoint`.
        out: where it is written; None: the run folder, and where that cannot be written, nowhere, which is said.
        report: whether evaluation-<protocol>/report.html is written too, a page that shows the mistakes.

    Returns:
        An exit code, as `launch` has them.
    """
    from tdaf.cli.run import launch

    run = open_run(checkpoint, overrides, trust)  # a mistake is found before ranks are started
    if report and not hasattr(run.task(), "report"):
        raise UserError(f"report=true: the task of {run.path} has no method report (see tdaf/task.py)")
    if out is not None:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
    job = functools.partial(_rank, str(checkpoint), tuple(overrides), folded, tuple(trust), out, report)
    return launch(job, run.settings)


def evaluate_in_turn(checkpoint: str | Path, several: Sequence[Sequence[str]], trust: Sequence[str] = ()) -> int:
    """One evaluation after another, each with its own overrides. Returns the first exit code that is not 0."""
    codes = (evaluate_checkpoint(checkpoint, overrides, False, trust) for overrides in several)
    return next((code for code in codes if code), 0)


def _rank(
    checkpoint: str,
    overrides: Sequence[str],
    folded: bool,
    trust: Sequence[str],
    out: Path | None,
    report: bool,
    _: dict,
    device: torch.device,
) -> None:
    from tdaf.cli.run import loader_settings
    from tdaf.engine import dist
    from tdaf.engine.evaluate import REPORT, evaluate
    from tdaf.engine.log import RunFolder, to_json
    from tdaf.engine.precision import Precision

    def built() -> tuple:
        run = open_run(checkpoint, overrides, trust)
        task = run.task(data=True)
        return run, task, run.network(task, folded)

    run, task, network = dist.run_on_all_ranks(built)
    trainer = run.settings["trainer"]
    precision = Precision(trainer["precision"], device, trainer["channels_last"])
    result = evaluate(
        precision.place(network),
        task,
        batch=max(1, trainer["batch"] // trainer["accumulate"] // dist.world()),
        loader=loader_settings(run.settings),
        precision=precision,
        seed=run.settings["seed"],
        report=str(run.path) if report else None,
    )
    if dist.rank() != 0:
        return
    for name, text in result.files.items():
        if name.endswith(".md"):
            print(text)
    print(f"{run.path}: {result}", flush=True)
    how = {"checkpoint": str(run.path), "settings": list(overrides), "folded": folded}
    folder = RunFolder(out or run.folder)
    try:
        folder.write(f"evaluation-{result.protocol}.json", to_json({**how, **result.as_dict()}) + "\n")
        for name, text in result.files.items():
            folder.write(f"evaluation-{result.protocol}/{name}", text)
            if name == REPORT:
                print(folder.folder / f"evaluation-{result.protocol}" / name, flush=True)
    except RunError as error:
        if out is not None:
            raise
        print(f"not kept: {error}; out=FOLDER says where else", file=sys.stderr, flush=True)


def _overridden(run: Run, overrides: Sequence[str]) -> Run:
    for word in overrides:
        key = word.partition("=")[0]
        if "." not in key and key not in OF_THE_MACHINE:
            why = f"a run keeps its {key}" if key in run.settings else "there is no such setting"
            raise UserError(f"{word}: {why}; --help says which there are")
    if not overrides:
        return run
    from tdaf.cli.compose import overridden

    return dataclasses.replace(run, settings=overridden(run.settings, list(overrides)))
