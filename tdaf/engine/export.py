"""A trained network as one file for others: bytes in, answers out, checked against the checkpoint; and such a file run.

export(load_checkpoint("runs/imagenet/res50-..."), Path("model.onnx"))
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tdaf.engine.checkpoint import atomic_write
from tdaf.engine.trained import EXPORTED, Run
from tdaf.env import commit
from tdaf.errors import RunError, UnreadableSample, UserError, first_line

PT2 = ".pt2"
SIDE, LEAST = 32, 192  # sides of samples are multiples of the one, and that which is traced has the other or more
Outputs = dict[str, Tensor]


def export(run: Run, out: Path, dynamic: bool | None = None, tolerance: float = 1e-3) -> dict[str, float]:
    """Writes `task.deployed(network)`, batch norms folded, and runs the file on samples against the network itself.

    Args:
        run: the trained network.
        out: PATH.onnx, which needs the packages of the extra "onnx", or PATH.pt2 (torch.export.load reads it; that
            needs torchvision where detections are suppressed).
        dynamic: whether height and width may be any; None: where the task says so. The batch may always be any.
        tolerance: the largest difference that is let pass, in shares of an output's largest value (of 1, where that is
            smaller).

    Returns:
        The largest difference of each output, over the samples. Empty where the samples gave none to compare, as
        pictures in which nothing is detected; then it is only known that the file runs.

    Raises:
        UserError: another ending, a task that cannot be exported, or packages are missing.
        RunError: the network cannot be exported, or a difference is beyond the tolerance; the file is then not there.
    """
    if out.suffix not in (EXPORTED, PT2):
        raise UserError(f"out={out}: give a name that ends in {EXPORTED} or {PT2}")
    if out.suffix == EXPORTED:
        _need("onnx", "onnxruntime", "onnxscript")
    if run.path.suffix == EXPORTED:
        raise UserError(f"{run.path} is exported already; give the run folder that it is from")
    task = run.task()
    if not hasattr(task, "deployed"):
        raise UserError(f"{run.path}: its task cannot be exported: it has no method deployed (see tdaf/task.py)")
    network = task.deployed(run.network(task, folded=True), onnx=out.suffix == EXPORTED).eval()
    if dynamic is not None:
        network.dynamic = dynamic
    samples, protocol = _samples(run, task, network)
    about = {
        "config": run.settings,
        "classes": list(run.classes),
        "class_ids": run.class_ids and list(run.class_ids),
        "raw": network.raw,
        "dynamic": network.dynamic,
    }
    metadata = {
        "task": str(run.settings["name"] if "name" in run.settings else type(task).__name__),
        "classes": json.dumps(about["classes"]),
        "protocol": protocol,
        "input": json.dumps(_described(network, samples[0])),
        "commit": commit() or "",
        "tdaf": json.dumps(about),
    }
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            program = _traced(network, samples[0])
            out.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(out) as file:
                _write(program, network, samples[0], metadata, file, out.suffix)
        except OSError as error:
            raise UserError(f"out={out} cannot be written: {error.strerror or error}") from error
        except Exception as error:  # a network of a user's may hold whatever torch.export does not know
            raise RunError(f"{run.path} cannot be exported: {type(error).__name__}: {first_line(error)}") from error
        return _checked(network, out, samples, tolerance)


class Exported(nn.Module):
    """What `export` has written, called as the task's network is; it has no parameters.

    Args:
        path: the file.

    Attributes:
        reads: the entries of a batch that `forward` takes.
        about: "config", "classes" and "class_ids", as a checkpoint's; "raw" and "dynamic", as of `Task.deployed`.

    Raises:
        UserError: no such file, one of others, or onnxruntime is not installed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        _need("onnxruntime")
        import onnxruntime

        if not path.is_file():
            raise UserError(f"no exported network at {path}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        try:
            providers = onnxruntime.get_available_providers()
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
            self.about: dict[str, Any] = json.loads(self.session.get_modelmeta().custom_metadata_map["tdaf"])
        except KeyError as error:
            raise UserError(f"{path} was not written by scripts/export.py: it does not say its settings") from error
        except Exception as error:  # onnxruntime's have no common class
            raise UserError(f"{path} is damaged or no file of ONNX: {first_line(error)}") from error
        self.path = path
        self.reads = [entry.name for entry in self.session.get_inputs()]
        self.rank = len(self.session.get_inputs()[0].shape)

    def outputs(self, input: Tensor, *more: Tensor) -> dict[str, Tensor]:
        """All that the file gives, on the inputs' device; of V views a sample, (B, V, ...), as (B, V, ...)."""
        views = input.shape[: input.ndim - self.rank + 1]
        given = [input.flatten(0, len(views) - 1), *more]
        arrays = {name: value.cpu().contiguous().numpy() for name, value in zip(self.reads, given, strict=True)}
        try:
            found = self.session.run(None, arrays)
        except Exception as error:
            raise RunError(f"{self.path}: {first_line(error)}") from error
        names = [entry.name for entry in self.session.get_outputs()]
        tensors = (torch.from_numpy(array).to(input.device).unflatten(0, views) for array in found)
        return dict(zip(names, tensors, strict=True))

    def forward(self, input: Tensor, *more: Tensor) -> Any:
        """What evaluator and `postprocess` of the task take for the network's outputs."""
        outputs = self.outputs(input, *more)
        return outputs if self.about["raw"] is None else outputs[self.about["raw"]]


def _need(*packages: str) -> None:
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"{EXPORTED} needs {error.name}: pip install -e '.[onnx]'") from error


def _traced(network: nn.Module, sample: dict[str, Tensor]) -> torch.export.ExportedProgram:
    any_, batch = torch.export.Dim.DYNAMIC, {0: torch.export.Dim.DYNAMIC}
    axes = {name: dict(batch) for name in sample}
    if network.dynamic:
        axes["input"] |= {axis: any_ for axis in (sample["input"].ndim - 2, sample["input"].ndim - 1)}
    return torch.export.export(
        network,
        tuple(sample.values()),
        dynamic_shapes=axes,
        strict=False,
        # a question that only some sizes answer otherwise becomes a check in the file
        prefer_deferred_runtime_asserts_over_guards=True,
    )


def _write(program: Any, network: nn.Module, sample: dict[str, Tensor], metadata: dict, file: Any, suffix: str) -> None:
    if suffix == PT2:
        torch.export.save(program, file, extra_files=metadata)
        return
    import onnx

    made = torch.onnx.export(
        program,
        tuple(sample.values()),
        dynamo=True,
        verbose=False,
        input_names=list(sample),
        output_names=list(network(*sample.values())),
        custom_translation_table=getattr(network, "translations", dict)(),
    )
    model = made.model_proto
    onnx.helper.set_model_props(model, metadata)
    file.write(model.SerializeToString())


def _checked(network: nn.Module, out: Path, samples: list[dict[str, Tensor]], tolerance: float) -> dict[str, float]:
    call: Callable[..., Outputs]
    call = Exported(out).outputs if out.suffix == EXPORTED else torch.export.load(out).module()
    found: dict[str, float] = {}
    differences = getattr(network, "differences", _differences)
    try:
        for sample in samples:
            expected, got = network(*sample.values()), call(*sample.values())
            for name, value in differences(expected, got).items():
                found[name] = max(found.get(name, 0.0), value)
    except Exception as error:
        out.unlink()
        raise RunError(
            f"{out} does not run on an input of {list(sample['input'].shape)}: {first_line(error)}"
        ) from error
    wrong = {name: value for name, value in found.items() if not value <= tolerance}
    if wrong:
        out.unlink()
        text = ", ".join(f"{name} by {value:.2g}" for name, value in wrong.items())
        raise RunError(f"{out} differs from {tolerance:g} on, and was deleted: {text}")
    return found


def _differences(expected: Outputs, found: Outputs) -> dict[str, float]:
    return {
        name: ((found[name] - value).abs().max() / value.abs().max().clamp(min=1)).item()
        for name, value in expected.items()
    }


def _samples(run: Run, task: Any, network: nn.Module) -> tuple[list[dict[str, Tensor]], str]:
    """Batches of several sizes and lengths, the first of which the network is traced with: validation samples where
    the run's data are there, else of a drawn picture. And the protocol, where that can be told."""
    protocol = getattr(task, "protocol", "")
    names = list(inspect.signature(network.forward).parameters)
    try:
        full = run.task(data=True)
        dataset, protocol = full.dataset("val"), full.evaluator().protocol
        batch = dataset.collate([dataset[len(dataset) * k // 3] for k in range(3)])
    except (UserError, RunError, UnreadableSample):
        with TemporaryDirectory() as folder:
            dataset = task.predict_dataset([_drawn(Path(folder), dims=run.settings.get("dims", 2))])
            batch = dataset.collate([dataset[0]] * 3)
    rank = 5 if run.settings.get("dims") == 3 else 4
    pixels = batch["input"]
    batch["input"] = pixels if pixels.ndim == rank else pixels[:, 0].contiguous()
    whole = {name: batch[name] for name in names}
    if not network.dynamic:
        return [whole, _cut(whole, 1)], protocol
    # a side of 1 in a map is special to torch.export, so no map of the sample that is traced may have one
    height, width = (-(-max(size, LEAST) // SIDE) * SIDE for size in whole["input"].shape[-2:])
    more = (0, width - whole["input"].shape[-1], 0, height - whole["input"].shape[-2])
    whole["input"] = nn.functional.pad(whole["input"], more)
    return [whole, _cut(whole, 1, height - SIDE, width), _cut(whole, 2, height, width - SIDE)], protocol


def _cut(sample: dict[str, Tensor], length: int, height: int | None = None, width: int | None = None) -> Any:
    return {
        name: value[:length, ..., :height, :width].contiguous() if name == "input" else value[:length]
        for name, value in sample.items()
    }


def _drawn(folder: Path, dims: int) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC)
    if dims == 2:
        picture.save(folder / "drawn.png")
        return folder / "drawn.png"
    from tdaf.media.clip import VideoWriter

    with VideoWriter(folder / "drawn.mp4", 25) as video:
        for shift in range(64):
            frame = np.roll(np.asarray(picture), shift, 1)
            video.write(torch.from_numpy(frame.copy()).permute(2, 0, 1))
    return folder / "drawn.mp4"


def _described(network: nn.Module, sample: dict[str, Tensor]) -> dict[str, Any]:
    shape: list[Any] = ["batch", *sample["input"].shape[1:]]
    if network.dynamic:
        shape[-2:] = "height", "width"
    return {"shape": shape, "pixels": "RGB, 0 to 255, uint8"}
