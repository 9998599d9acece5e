"""What ends a run from inside: numbers that are not finite, unreadable samples, dead workers, hanging ranks."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import ROOT, ColourTask, Pictures, little, run, trainer
from torch import Tensor, inf, nn

from tdaf.engine import checkpoint
from tdaf.engine.data import TrainingOrder
from tdaf.engine.evaluate import undefined_outputs
from tdaf.engine.log import to_json
from tdaf.errors import RunError


class Exploding(ColourTask):
    def __init__(self, sample: int) -> None:
        super().__init__()
        self.sample = sample

    def losses(self, outputs: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        found = super().losses(outputs, batch)
        if self.sample in batch["index"].tolist():
            found["size"] = found["size"] * inf
        return found


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    order, step = iter(TrainingOrder(44, 8, seed=5)), 3
    samples = [i for _, i in [next(order) for _ in range(step)][-1]]
    made = trainer(tmp_path, task=Exploding(samples[5]), checkpoint_every=2, log_every=50)
    with pytest.raises(RunError) as raised:
        run(made)  # it is found when the losses are read, which is before anything is saved
    said = str(raised.value)
    assert said.startswith(f"non-finite loss at step {step}: cross_entropy=") and "size=inf" in said
    assert f"samples {samples};" in said
    kept, _ = checkpoint.load_last(tmp_path / "checkpoints")
    assert kept is not None and kept["step"] == step - 1
    assert all(v.isfinite().all() for v in kept["network"].values())
    assert (tmp_path / "log.txt").read_text().splitlines()[-1].endswith(f"ended by RunError: {said}")


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    made = trainer(tmp_path, checkpoint_every=1, log_every=1)
    network, calls = made.network, []

    def spoil(gradient: Tensor) -> Tensor:
        calls.append(1)
        return gradient * inf if len(calls) == 3 else gradient

    network[0].weight.register_hook(spoil)  # the loss of step 3 is finite, and so is all that was logged
    with pytest.raises(RunError, match="non-finite weights at step 3; the checkpoint before is kept"):
        run(made)
    kept, _ = checkpoint.load_last(tmp_path / "checkpoints")
    assert kept is not None and kept["step"] == 2


def test_a_batch_of_which_nothing_can_be_read_ends_the_run(tmp_path: Path) -> None:
    made = trainer(tmp_path, train=Pictures(44, bad=tuple(range(44))), max_bad=100)
    with pytest.raises(RunError, match="not one sample of a batch could be read"):
        run(made)


def test_bad_samples_up_to_max_bad_are_trained_around(tmp_path: Path) -> None:
    made = run(trainer(tmp_path, train=Pictures(44, bad=(3,)), val=Pictures(21, bad=(4, 20)), max_bad=2))
    assert made.last is not None and made.last.samples == 19 and made.last.skipped == 2
    assert str(made.last).endswith("(counting, 19 samples, 2 skipped)")
    with pytest.raises(RunError, match=r"cannot read picture-20\.jpg"):
        run(trainer(tmp_path / "more", val=Pictures(21, bad=(4, 20)), max_bad=1))


HANGING = """
import sys, time
from pathlib import Path
sys.path.insert(0, "tests")
from tiny_run import Pictures, run, trainer

class Hanging(Pictures):
    def __getitem__(self, index):
        if index == 30:
            time.sleep(600)
        return super().__getitem__(index)

run(trainer(Path(sys.argv[1]), train=Hanging(44), workers=int(sys.argv[2]), hang_timeout=1.0))
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_rank_that_hangs_says_where_and_ends(tmp_path: Path, workers: int) -> None:
    words = [sys.executable, "-c", HANGING, str(tmp_path), str(workers)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith("error: rank 0: no step within hang_timeout=1 s; ")
    assert "files being read: picture-30.jpg; stacks: " in said
    stacks = (tmp_path / "hang-rank0.txt").read_text()
    assert stacks.startswith(said) and "_one_step" in stacks
    assert checkpoint.load_last(tmp_path / "checkpoints")[1] == ""


class Undefined(nn.Module):
    """A network with finite weights that says NaN of some samples, by their pixels."""

    def __init__(self, which: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.which = little(), which

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        return logits if self.training else logits.masked_fill(self.which(x)[:, None], math.nan)


def test_outputs_that_are_nan_end_an_evaluation_and_are_never_best(tmp_path: Path) -> None:
    third = {}

    class Remembering(Pictures):
        def __getitem__(self, index: int) -> dict[str, Any]:
            sample = super().__getitem__(index)
            third.setdefault("pixel", sample["input"][0, 0, 0]) if index == 3 else None
            return sample

    def network() -> nn.Module:
        return Undefined(lambda x: x[:, 0, 0, 0] == third["pixel"])

    with pytest.raises(RunError, match=r"output is NaN for picture-3\.jpg:"):
        run(trainer(tmp_path, val=Remembering(21), network=network))
    assert not (tmp_path / "checkpoints" / checkpoint.BEST).exists()
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("outputs", "wrong"),
    [
        (torch.tensor([[0.0, 1], [math.nan, 1], [math.inf, 1]]), [1]),
        ({"logits": torch.zeros(3, 2), "maps": [torch.zeros(3, 1, 2), torch.tensor([0, 0, math.nan])]}, [2]),
        ({"logits": torch.zeros(3, 2), "strides": (8, 16)}, []),
        ((torch.zeros(3), torch.tensor(math.nan)), [0, 1, 2]),
        (torch.zeros(3, dtype=torch.int64), []),
    ],
)
def test_the_samples_of_outputs_that_are_nan(outputs: Any, wrong: list[int]) -> None:
    assert undefined_outputs(outputs, 3) == wrong


def test_json_has_no_number_that_json_does_not_know() -> None:
    found = json.loads(to_json({"a": math.nan, "b": [math.inf, 1.5, 2], "c": None, "d": True}))
    assert found == {"a": None, "b": [None, 1.5, 2], "c": None, "d": True}
