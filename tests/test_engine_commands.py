"""What ends a run, from inside and from outside: it goes on to the bits of an uninterrupted run."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call, tiny
from tiny_run import ROOT, ColourTask, Pictures, little, numbers, run, same, start, trained, trainer, until
from torch import Tensor, inf, nn

from tdaf.cli.run import loader_settings
from tdaf.engine import checkpoint
from tdaf.engine.data import TrainingOrder
from tdaf.engine.evaluate import undefined_outputs
from tdaf.engine.log import to_json
from tdaf.errors import RunError

COMMAND = "task.head=linear task.dropout=0.2 task.mixup=0.4 trainer.ema=0.9 trainer.checkpoint_every=1 gpus=0".split()
Starts = Callable[..., subprocess.Popen]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Starts]:
    """A folder, and what starts the command for the run folder `name` in it; "whole" has run there uninterrupted."""
    root = tmp_path_factory.mktemp("commands")

    def begin(name: str, *overrides: str) -> subprocess.Popen:
        return start([*COMMAND, f"demo.root={root}", f"run_dir={root / name}", *overrides], root / f"{name}.txt")

    process = begin("whole")
    assert process.wait(300) == 0, (root / "whole.txt").read_text()
    return root, begin


def test_a_run_cut_in_every_way_is_the_whole_run(commands: tuple[Path, Starts]) -> None:
    """Kill -9 in training, in the middle of saving and in an evaluation, then Ctrl-C, then SIGTERM, then to the end."""
    root, begin = commands
    run, output = root / "cut", root / "cut.txt"
    log, checkpoints = run / "log.txt", run / "checkpoints"

    def text() -> str:
        return log.read_text() if log.exists() else ""

    def said(words: str) -> bool:
        return words in text()[before:]

    cuts: list[tuple[Callable[[], bool], int, int]] = [
        (lambda: said("images/s"), signal.SIGKILL, -signal.SIGKILL),
        (lambda: said("images/s") and any(checkpoints.glob(".last.pt.*")), signal.SIGKILL, -signal.SIGKILL),
        # an epoch: it is saved, evaluated, saved
        (lambda: said("step 5/12") or said("step 10/12"), signal.SIGKILL, -signal.SIGKILL),
        (lambda: said("images/s"), signal.SIGINT, 130),
        (lambda: said("images/s"), signal.SIGTERM, 75),
    ]
    for place, (moment, number, code) in enumerate(cuts):
        before = len(text())
        process = begin("cut", f"loader.workers={int(place > 1)}")
        assert until(moment, process), output.read_text()
        os.killpg(process.pid, number)  # the reading workers hear it too, as they do of scancel, torchrun and Ctrl-C
        assert process.wait(60) == code, output.read_text()
    lines = output.read_text().splitlines()
    assert "stopped: interrupted; the same command goes on from the last checkpoint" in lines
    assert lines[-1] == "stopped: told to stop; everything is saved and the same command goes on"
    assert sum("going on from step" in line for line in lines) >= 2
    before = len(text())
    process = begin("cut")
    assert until(lambda: said("going on from step"), process), output.read_text()
    os.killpg(process.pid, signal.SIGSTOP)
    second = begin("cut")
    assert second.wait(60) == 2
    assert output.read_text().splitlines()[-1].startswith(f"error: another process is training in {run}; ")
    os.killpg(process.pid, signal.SIGCONT)
    assert process.wait(120) == 0, output.read_text()
    assert "Traceback" not in output.read_text()
    assert same(trained(run), trained(root / "whole"))
    assert (run / "summary.json").exists()
    last = {(e["split"], e["step"]): e for e in numbers(run)}
    assert len(last) == len(numbers(run)), "an event was logged twice"
    # a run that was told to stop logs at that step too, so the means of the losses around it are over other steps
    vals = [e for e in numbers(root / "whole") if e["split"] == "val"]
    assert [e for e in numbers(run) if e["split"] == "val"] == vals


def test_where_a_run_cannot_start_is_said_in_one_line(commands: tuple[Path, Starts]) -> None:
    """In a finished run's folder, in one of a run with other settings, and where nothing can be written."""
    root, begin = commands
    (root / "file").write_text("")
    before = {path: path.stat().st_mtime_ns for path in (root / "whole").rglob("*") if path.is_file()}
    finished, other = begin("whole"), begin("other", f"run_dir={root / 'whole'}", "optim.lr=0.7")
    nowhere = begin("nowhere", f"run_dir={root / 'file' / 'run'}")
    assert [process.wait(120) for process in (finished, other, nowhere)] == [0, 2, 2]
    said = {name: (root / f"{name}.txt").read_text().splitlines()[-1] for name in ("whole", "other", "nowhere")}
    assert "is finished: top1" in said["whole"]
    assert said["other"].startswith(f"error: {root / 'whole'} holds a run with other settings (optim.lr: 0.002")
    assert said["nowhere"] == f"error: run_dir={root / 'file' / 'run'} cannot be written: Not a directory"
    assert before == {path: path.stat().st_mtime_ns for path in (root / "whole").rglob("*") if path.is_file()}


def test_a_task_that_says_nothing_of_unreadable_samples_allows_none() -> None:
    assert loader_settings({"loader": {"workers": 0}, "data": {}}).max_bad == 0


READING = """
from tasks.classification.task import Classification

class Reading(Classification):
    def network(self, backbone, tdaf):
        network = super().network(backbone, tdaf)
        network.register_forward_pre_hook(lambda module, inputs: print("sum", inputs[0].sum().item()))
        return network
"""


def test_a_network_that_reads_a_value_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot run on the meta device, where mistakes in shapes are looked for and costs are counted."""
    (tmp_path / "reading.py").write_text(READING)
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "run"
    command = tiny(tmp_path, "task._target_=reading.Reading", f"run_dir={run}")
    assert call(monkeypatch, command) == 0
    assert json.loads((run / "summary.json").read_text())["gflops"] > 0


def test_a_network_that_cannot_take_the_samples_is_refused_before_there_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reading.py").write_text(READING.replace("inputs[0].sum().item()", "inputs[0].view(-1, 7, 5, 3)"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "reading", raising=False)
    run = tmp_path / "run"
    assert call(monkeypatch, tiny(tmp_path, "task._target_=reading.Reading", f"run_dir={run}")) == 2
    assert "the network cannot take training samples of 3x24x24" in capsys.readouterr().err and not run.exists()


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
