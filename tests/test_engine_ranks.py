"""Two and four gloo ranks against one: gradients, batch norm, evaluation, checkpoints, and how one ends all."""

import hashlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_jobs import (
    dies_at_the_end,
    dies_in_a_step,
    everything,
    four,
    killed,
    norm_output,
    one_step,
    parts,
    ranks,
    unreadable,
)
from tiny_run import ROOT, run, same, start, trained, trainer, until
from torch import nn

from tdaf.engine import checkpoint
from tdaf.engine.dist import settle_threads, synchronise
from tdaf.model.backbones.resnet import resnet
from tdaf.model.flows import TDAF


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder and what each of two ranks found."""
    folder = tmp_path_factory.mktemp("two")
    assert ranks(everything, folder) == 2
    return folder, [torch.load(folder / f"{rank}.pt") for rank in range(2)]


Two = tuple[Path, list[dict[str, Any]]]


def test_two_halves_give_the_gradients_of_the_whole(two: Two, tmp_path: Path) -> None:
    expected = one_step(tmp_path)
    assert any(value.abs().max() > 0.01 for name, value in expected.items() if name.endswith("weight"))
    for share in two[1]:
        assert share["gradients"].keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(share["gradients"][name], value, atol=1e-5, rtol=1e-5)


def test_two_ranks_of_two_parts_give_the_step_of_one_of_two(two: Two, tmp_path: Path) -> None:
    expected = parts(tmp_path)
    for name, value in expected.items():
        torch.testing.assert_close(two[1][0]["parts"][name], value, atol=1e-5, rtol=1e-5)
    assert same(two[1][0]["parts"], two[1][1]["parts"])


@pytest.mark.parametrize("name", ["norm2", "norm3"])
def test_batch_norm_over_ranks_is_batch_norm_of_the_whole_batch(two: Two, name: str) -> None:
    expected = norm_output((3, 4) if name == "norm2" else (2, 3, 2))
    first, second = (share[name] for share in two[1])
    for key in ("output", "input"):
        torch.testing.assert_close(torch.cat([first[key], second[key]]), expected[key], atol=1e-4, rtol=1e-4)
    for key in ("weight", "bias"):
        torch.testing.assert_close(first[key] + second[key], expected[key], atol=1e-3, rtol=1e-4)
    both = torch.cat([first["short"], second["short"]])
    assert both.dtype == torch.bfloat16  # as autocast gives it; the statistics are in float32 all the same
    torch.testing.assert_close(both.float(), expected["short"].float(), atol=2e-2, rtol=2e-2)
    for key in ("mean", "variance"):
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(first[key], expected[key])


def test_evaluation_counts_each_sample_once(two: Two) -> None:
    for share in two[1]:
        assert share["evaluated"]["samples"] == 19 and share["evaluated"]["skipped"] == 2
        assert share["evaluated"]["values"]["places"] == 210 - 4 - 7


def test_unreadable_samples_are_counted_over_all_ranks(two: Two) -> None:
    first, second = (share["skipped"] for share in two[1])  # one bad sample on each rank, and one allowed
    assert first == "cannot read 2 samples (picture-4.jpg, picture-7.jpg), max_bad=1"
    assert second == "", "it is said once"


def test_a_signal_to_one_rank_stops_both_and_the_run_goes_on_bit_for_bit(two: Two) -> None:
    """Each rank's batch norm has statistics of its own then, and keeps them."""
    half = checkpoint.load(two[0] / "half" / "checkpoints" / checkpoint.LAST)
    first, second = (rank["network"]["1.running_mean"] for rank in half["statistics"])
    assert not torch.equal(first, second)
    assert same(trained(two[0] / "cut"), trained(two[0] / "whole"))
    assert len(trained(two[0] / "cut")["rng"]) == 2
    assert same(trained(two[0] / "cut-parts"), trained(two[0] / "whole-parts"))


def test_the_average_keeps_its_own_statistics(two: Two) -> None:
    state = trained(two[0] / "whole")
    assert not torch.equal(state["ema"]["module.1.running_mean"], state["network"]["1.running_mean"])
    first, second = (rank["ema"]["1.running_mean"] for rank in state["statistics"])
    assert torch.equal(first, second), "the last step was evaluated, and each rank evaluates the same network"


def test_a_run_of_two_ranks_goes_on_with_one(two: Two) -> None:
    assert checkpoint.load(two[0] / "half" / "checkpoints" / checkpoint.LAST)["step"] < 12
    assert run(trainer(two[0] / "half", max_steps=12, ema=0.9)).step == 12


def test_losses_whose_names_differ_between_ranks_are_said(two: Two) -> None:
    assert two[1][0]["losses"].startswith("rank 1 lacks the loss size, has the new loss other")
    assert two[1][1]["losses"] == ""


def test_the_stop_question_waits_as_long_as_any_collective(two: Two) -> None:
    assert two[1][0]["limits"] == [1000 + 7 + 60]


def test_synchronising_keeps_what_flows_share() -> None:
    for device in ("cpu", "cuda"):  # the second only takes torch's own class, which is built without a GPU too
        network = TDAF(resnet(18, width=8), flows=3, anar=5, anar_width=32)
        before = {name: id(value) for name, value in network.named_parameters()}
        keys = network.state_dict().keys()
        changed = synchronise(network, torch.device(device))
        assert {name: id(value) for name, value in changed.named_parameters()} == before
        assert changed.state_dict().keys() == keys
        norms = [m for m in changed.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert norms and not any(type(m) in (nn.BatchNorm2d, nn.BatchNorm3d) for m in norms)


def test_no_worker_is_forked_while_a_native_thread_computes() -> None:
    """python/cpython#112275: where such a thread enters Python at that moment, the worker waits for ever."""
    thread = threading.Thread(target=hashlib.pbkdf2_hmac, args=("sha256", b"", b"", 1_000_000))
    thread.start()
    assert thread.is_alive()
    settle_threads(60)
    thread.join(1)
    assert not thread.is_alive()


def test_a_mistake_that_one_rank_finds_is_said_once(two: Two) -> None:
    assert [share["mistake"] for share in two[1]] == ["root=x: no such folder", ""]


ENDED = r"error: (rank \d: )?another rank has ended, or did not answer in time; its own message says why"


@pytest.mark.parametrize(
    ("job", "code", "said"),
    [
        (
            unreadable,
            1,
            [ENDED, r"error: rank 1: cannot read picture-\d+\.jpg: it is no JPEG \(1 unreadable, max_bad=0\);.*"],
        ),
        (killed, 137, [r"error: a rank was ended by SIGKILL", ENDED]),
    ],
)
def test_what_ends_one_rank_ends_all_in_a_line(
    job: Any, code: int, said: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ranks(job, tmp_path) == code
    errors = sorted(line for line in capfd.readouterr().err.splitlines() if line.strip())
    assert len(errors) == len(said), errors
    for line, pattern in zip(errors, said, strict=True):
        assert re.fullmatch(pattern, line), errors


def test_a_rank_that_dies_in_a_step_costs_the_steps_since_the_checkpoint(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ranks(dies_in_a_step, tmp_path) == 137
    errors = sorted(line for line in capfd.readouterr().err.splitlines() if line.strip())
    assert len(errors) == 2 and errors[0] == "error: a rank was ended by SIGKILL" and re.fullmatch(ENDED, errors[1])
    assert checkpoint.load(tmp_path / "checkpoints" / checkpoint.LAST)["step"] == 3
    assert run(trainer(tmp_path)).step == 12


def test_a_rank_that_dies_after_training_costs_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert ranks(dies_at_the_end, tmp_path) == 137
    assert capfd.readouterr().err.strip() == "error: a rank was ended by SIGKILL"
    assert (tmp_path / "summary.json").exists() and trained(tmp_path)["step"] == 12


def test_four_ranks_are_one_and_go_on_as_four(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert ranks(four, tmp_path, 4) == 0
    assert "Warning" not in capfd.readouterr().err
    expected, found = one_step(tmp_path / "one"), [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]
    for share in found:
        for name, value in expected.items():
            torch.testing.assert_close(share["gradients"][name], value, atol=1e-5, rtol=1e-5)
        assert share["evaluated"] == found[0]["evaluated"] and share["evaluated"]["samples"] == 20
    assert same(trained(tmp_path / "cut"), trained(tmp_path / "whole"))
    assert len(trained(tmp_path / "cut")["rng"]) == 4


PARENT = """
from tdaf.engine.spawn import spawn
if __name__ == "__main__":
    import slow
    spawn(slow.work, (), 1)
"""
SLOW = """
import os, pathlib, time
def work():
    return 0
if "RANK" in os.environ:
    pathlib.Path(__file__).with_name("pid").write_text(str(os.getpid()))
    time.sleep(600)
"""


def test_ranks_end_with_a_parent_that_is_killed_while_they_start(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "slow.py").write_text(SLOW)
    pid = tmp_path / "pid"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], cwd=ROOT, env=environment)
    assert until(lambda: pid.exists() and pid.read_text(), parent)
    parent.kill()
    parent.wait()
    gone = Path("/proc", pid.read_text(), "cmdline")  # empty once the process has ended, even where nobody reaps it
    assert until(lambda: not gone.exists() or not gone.read_bytes(), seconds=10)


def test_torchrun_trains_on_two_ranks(tmp_path: Path) -> None:
    program = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "train.py")
    overrides = ["gpus=0", "trainer.max_steps=4", "trainer.sync_bn=true"]
    overrides += [f"run_dir={tmp_path / 'run'}", f"demo.root={tmp_path}"]
    process = start(overrides, tmp_path / "out.txt", program)
    assert process.wait(180) == 0, (tmp_path / "out.txt").read_text()
    said = (tmp_path / "out.txt").read_text()
    assert "(2 ranks x 4 x 1 part)" in said and "21 samples, 0 skipped" in said
    assert said.count("finished: top1") == 1
    assert (tmp_path / "run" / "summary.json").exists()
