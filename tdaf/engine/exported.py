"""A network in a file of ONNX, run by onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tdaf.errors import RunError, UserError

INSTALL = "needs onnxruntime: pip install -e '.[onnx]'"


class Exported(nn.Module):
    """What `export.export` has written, called as the task's network is; it has no parameters.

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
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(f"{path}: an exported network {INSTALL}") from error
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
            raise UserError(f"{path} is damaged or no file of ONNX: {str(error).splitlines()[0]}") from error
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
            raise RunError(f"{self.path}: {str(error).splitlines()[0]}") from error
        names = [entry.name for entry in self.session.get_outputs()]
        tensors = (torch.from_numpy(array).to(input.device).unflatten(0, views) for array in found)
        return dict(zip(names, tensors, strict=True))

    def forward(self, input: Tensor, *more: Tensor) -> Any:
        """What evaluator and `postprocess` of the task take for the network's outputs."""
        outputs = self.outputs(input, *more)
        return outputs if self.about["raw"] is None else outputs[self.about["raw"]]
