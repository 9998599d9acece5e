"""A second device with real arithmetic, for what a fake one cannot do: backward, a whole run, its numbers.

`other:0` is torch's PrivateUse1 backend, set up from Python: each of its tensors holds one of the CPU's, and every
operation runs on these. So a run on it gives the CPU's numbers, bit for bit, unless something looks at a device; and an
operation on tensors of two devices, or one that the host waits for where it must not, raises. torch is changed for the
whole process, so `python tests/second_device.py FOLDER` is one of its own: tests/test_second_device.py reads what it
writes.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from devices import COPIES, FAULTS, TINY, Faulty, HostWaits, aten, copy_that_waits, tiny, watched_run
from tiny_run import same, trained
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from tdaf.engine.trainer import Trainer

torch.utils.rename_privateuse1_backend("other")
OTHER = torch.device("other:0")
READS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default)


class Module(backend_registration._DummyBackendModule):
    """What torch asks a device's module."""

    def is_available(self) -> bool:
        return True

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def manual_seed_all(self, seed: int) -> None:
        pass

    def _is_in_bad_fork(self) -> bool:
        return False


class Held(Tensor):
    """A tensor of the other device."""

    reading = True  # whether the host may wait

    @staticmethod
    def __new__(cls, inner: Tensor) -> Held:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return Tensor._make_wrapper_subclass(cls, inner.shape, device=OTHER, **layout)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *unused: Any) -> Held:
        return Held(inner["inner"])

    def __repr__(self) -> str:
        return f"Held({self.inner})"

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.inner.__reduce_ex__(protocol)  # a file has tensors of no device of ours

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is Tensor.tolist:
            _wait(function)
            return args[0].inner.tolist()
        return torch._C._disabled_torch_function_impl(function, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return computed(func, args, dict(kwargs or {}))


class _Making(TorchDispatchMode):
    """What is made on the other device, or copied to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return computed(func, args, dict(kwargs or {}))


def computed(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The operation on what the tensors hold."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    held = [tensor for tensor in tensors if isinstance(tensor, Held)]
    device = kwargs.get("device")
    there = bool(held) if device is None else torch.device(device).type == OTHER.type
    if not held and not there:
        return func(*args, **kwargs)
    if func in COPIES:
        if copy_that_waits(func, args, kwargs):
            _wait(func)
    elif any(tensor.dim() and tensor.device.type == "cpu" for tensor in tensors):
        raise RuntimeError(f"{func}: tensors of two devices")
    masks = func is aten.index.Tensor and any(mask is not None and mask.dtype == torch.bool for mask in args[1])
    if func in READS or masks:
        _wait(func)
    if device is not None:
        kwargs["device"] = torch.device("cpu") if there else device
    result = func(*tree_map_only(Held, _inner, args), **tree_map_only(Held, _inner, kwargs))
    if func is aten.copy_.default:
        return args[0]
    if not there:
        return result
    result = tree_map_only(Tensor, Held, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if held else result


def _inner(held: Held) -> Tensor:
    return held.inner


def _wait(what: Any) -> None:
    if not Held.reading:
        raise HostWaits(f"{what}: the host waits for the device")


def second_device() -> torch.library.Library:
    """Sets it up; what is returned has to be kept."""
    backend_registration._setup_privateuseone_for_python_backend("other", Module())
    casts = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    casts.fallback(torch.library.fallthrough_kernel)  # all in float32
    return casts


def unwaited(train: Callable[[], None]) -> None:
    Held.reading = False
    try:
        train()
    finally:
        Held.reading = True


def trained_on(device: torch.device, task: str, folder: Path, cut_at: int | None = None) -> Trainer:
    """A run of two steps, cut short before step `cut_at`."""
    how = ["flows=2", "trainer.max_steps=2", "trainer.checkpoint_every=1", "trainer.clip=1", "trainer.ema=0.9"]
    how += ["trainer.precision=fp32", "trainer.log_every=1", f"run_dir={folder / 'run'}"]
    # channels last, torch takes sums of batch norm in another order than on the CPU
    how += [f"trainer.channels_last={'true' if task == 'coco_fcos' else 'false'}"]
    how += ["tdaf.rematerialise=true"] if task == "cifar10" else ["trainer.accumulate=2"] if task == "imagenet" else []
    return watched_run(tiny(task, folder.parent, *how), device, unwaited, cut_at)


def compared(task: str, folder: Path) -> str:
    """What is different on the second device; empty if nothing is."""
    here, there = (folder / task / name for name in ("cpu", "other"))
    expected = trained_on(torch.device("cpu"), task, here).last
    with _Making():
        trained_on(OTHER, task, there, cut_at=2)
        found = trained_on(OTHER, task, there)
        assert {parameter.device for parameter in found.network.parameters()} == {OTHER}
    if found.last.as_dict() != expected.as_dict():
        return f"{found.last} and not {expected}"
    one, other = (trained(path / "run") for path in (here, there))
    return ", ".join(name for name in one if not same(one[name], other[name]))


def said_of(fault: str) -> str:
    try:
        with _Making():
            x, Held.reading = torch.ones(4, device=OTHER), False
            Faulty(fault)(x)
    except Exception as error:
        return str(error)
    finally:
        Held.reading = True
    return ""


def main(folder: Path) -> None:
    casts, found = second_device(), {}
    for task in TINY:
        try:
            found[task] = compared(task, folder)
        except Exception:
            found[task] = traceback.format_exc()
    found |= {fault: said_of(fault) for fault in FAULTS}
    (folder / "found.json").write_text(json.dumps(found))
    del casts


if __name__ == "__main__":
    main(Path(sys.argv[1]))
