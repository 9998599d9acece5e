"""What only a GPU can show: `python -m pytest -m gpu`, made for eight minutes on one card. Skipped without one.

TDAF_GPU_TESTS_ON=cpu runs the same functions on the CPU, smaller, so that they are not code that never ran: it says
nothing of a GPU. scripts/gpu_day.py starts them, and so does its test.
"""

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from commands import ROOT
from devices import TINY, tiny, watched_run
from test_cache import decoded, written
from test_demo_learns import DEMOS
from tiny_run import same, start, trained, trainer, until
from torch import Tensor, nn

from tdaf import measure
from tdaf.cli import run
from tdaf.cli.compose import compose, group_options
from tdaf.cli.run import run_rank
from tdaf.engine import precision
from tdaf.engine.precision import Precision, float32
from tdaf.engine.spawn import spawn
from tdaf.engine.trainer import Trainer
from tdaf.model.backbones.resnet import resnet
from tdaf.model.flows import TDAF
from tdaf.model.fold import fold
from train import main

ON = os.environ.get("TDAF_GPU_TESTS_ON", "cuda")
REAL = ON == "cuda"
DEVICE = torch.device("cuda", 0) if REAL else torch.device("cpu")
CARDS = torch.cuda.device_count() if REAL else 2  # ranks that are tried: one a card, or two of gloo
GPUS = f"gpus={int(REAL)}"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(REAL and not torch.cuda.is_available(), reason="no GPU; TDAF_GPU_TESTS_ON=cpu tries the tests"),
]
several = pytest.mark.skipif(REAL and CARDS < 2, reason="one GPU; this is for two or more")
BACKBONES = [name for name in group_options("backbone") if name != "tiny"]
TASKS = list(TINY)
LEARNS = {**DEMOS, "imagenet": ("", "top1", "1crop", 400, 60)}  # the whole of it


def command(arguments: list[str]) -> int:
    with mock.patch.object(sys, "argv", ["train.py", *arguments]):
        try:
            return main()
        except SystemExit as ended:
            return ended.code


def waiting_is_an_error(train: Callable[[], None]) -> None:
    """A step in which the host must not wait for the device."""
    if not REAL:
        return train()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all draw their data."""
    return tmp_path_factory.mktemp("demo")


# --- It learns


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
@pytest.mark.parametrize("task", LEARNS)
def test_demos_learn_in_half_precision(task: str, kind: str, demo: Path, tmp_path: Path) -> None:
    shorter, _, _, _, floor = LEARNS[task]
    small = [] if REAL else [*TINY[task].split(), "trainer.max_steps=2", "trainer.batch=4", "loader.workers=0"]
    rest = [f"run_dir={tmp_path}", f"demo.root={demo}", "trainer.pictures=1", "trainer.evaluate_every=0", GPUS]
    how = [f"task={task}", "recipe=demo", *shorter.split(), *small, f"trainer.precision={kind}", *rest]
    assert command(how) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["precision"] == kind and summary["device"] != ("cpu" if REAL else "")
    assert summary["metric"]["best"] > floor or not REAL


# --- It computes what the CPU computes


def gradients(network: nn.Module, x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The last map and all gradients of a training step, one after the other, in float64 on the CPU."""
    network = Precision("fp32", device).place(network.to(dtype))
    network.train()
    last = network(x.to(device, dtype))[-1]
    last.square().mean().backward()
    found = [last, *(parameter.grad for parameter in network.parameters() if parameter.grad is not None)]
    return torch.cat([each.detach().double().cpu().flatten() for each in found])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_forward_and_gradients_are_those_of_the_cpu(backbone: str) -> None:
    """In fp32, without TF32: as near to float64 as the CPU's float32 is, but for a factor of 20 (a GPU may take other
    algorithms, Winograd's say, and others' roundings) and 1e-5."""
    config = compose(["task=imagenet", f"backbone={backbone}", "flows=3", "anar=3", "tdaf.anar_width=32"])
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) - 0.5

    def found(device: torch.device, dtype: torch.dtype) -> Tensor:
        torch.manual_seed(0)
        backbone = run.make(config["backbone"], "backbone")
        return gradients(run.make(config["tdaf"] | {"gate_init": "kaiming"}, "tdaf")(backbone), x, device, dtype)

    cpu = torch.device("cpu")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact, ours = found(cpu, torch.float64), found(DEVICE, torch.float32)
    usual = (found(cpu, torch.float32) - exact).norm() / exact.norm()
    assert (ours - exact).norm() / exact.norm() < 20 * usual + 1e-5


def test_a_folded_network_as_a_cuda_graph_gives_its_outputs() -> None:
    torch.manual_seed(0)
    network = Precision("fp32", DEVICE).place(TDAF(resnet(18, width=16), flows=3, anar=3, anar_width=32))
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.randn(8, 3, 64, 64, device=DEVICE))
    folded = fold(network.eval())
    x, other = (torch.randn(4, 3, 64, 64, device=DEVICE) for _ in range(2))
    with torch.no_grad():
        expected = network(other)[-1]
        if REAL:
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                folded(x)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = folded(x)[-1]
            x.copy_(other)
            graph.replay()
        else:
            found = folded(other)[-1]
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)  # TF32 in convolutions, which is on by default


# --- It does not wait, and it does not compile again


@pytest.mark.parametrize("task", TASKS)
def test_no_step_waits_for_the_device(task: str, demo: Path, tmp_path: Path) -> None:
    steps = (100 if task == "imagenet" else 20) if REAL else 2
    kind = "auto" if REAL else "fp32" if task == "kinetics" else "bf16"  # 3D kernels' gradients in bf16: oneDNN's NaN
    how = ["flows=3", f"run_dir={tmp_path}", f"trainer.max_steps={steps}", "trainer.clip=1", "trainer.ema=0.9"]
    how += [f"trainer.precision={kind}", "trainer.evaluate_every=0", "loader.workers=2", "trainer.log_every=10"]
    done = watched_run(tiny(task, demo, *how), DEVICE, waiting_is_an_error)
    assert done.step == steps and done.precision.kind in ("bf16", "fp32")


def test_waiting_is_seen() -> None:
    x = torch.ones(3, device=DEVICE)
    with pytest.raises(RuntimeError) if REAL else nullcontext():
        waiting_is_an_error(lambda: x.sum().item())


def test_batches_are_pinned_and_arrive_whole(demo: Path, tmp_path: Path) -> None:
    made = trained_briefly(demo, tmp_path, "trainer.max_steps=1")
    batch = next(iter(made.training_loader()))
    assert batch["input"].is_pinned() == REAL
    moved = made.precision.move(batch)
    assert moved["input"].device == DEVICE and torch.equal(moved["input"].cpu(), batch["input"])


def test_jpegs_decoded_by_the_gpu_are_those_of_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvJPEG rounds otherwise, and takes colours from fewer neighbours."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found, expected = decoded(written(tmp_path), DEVICE, workers=1)
    assert found.device == DEVICE and found.dtype == torch.uint8
    assert (found.cpu().int() - expected.int()).abs().float().mean() < 3


def trained_briefly(demo: Path, folder: Path, *how: str, task: str = "imagenet") -> Trainer:
    return watched_run(tiny(task, demo, f"run_dir={folder}", *how), DEVICE, lambda train: train())


def test_nothing_is_compiled_again_after_the_first_epoch(demo: Path, tmp_path: Path) -> None:
    """Two epochs with an evaluation each, whose last batch is an odd one; channels last. The eager backend stands for
    the compiler on the CPU: what is counted is what dynamo captures."""
    counted, evaluate = [], Trainer._evaluate_if_due
    torch._dynamo.reset()

    def counting(trainer: Trainer) -> None:
        evaluate(trainer)
        counted.append((trainer.step, torch._dynamo.utils.counters["stats"]["unique_graphs"]))

    def eager(module: nn.Module) -> None:
        module._compiled_call_impl = torch.compile(module._call_impl, backend="eager")

    checked = nullcontext() if REAL else mock.patch.object(precision, "check_compiler", lambda device: None)
    how = ["flows=2", "trainer.compile=true", "trainer.epochs=3", "trainer.evaluate_every=1", "demo.val=10"]
    with mock.patch.object(Trainer, "_evaluate_if_due", counting), checked:
        with mock.patch.object(nn.Module, "compile", nn.Module.compile if REAL else eager):
            trained_briefly(demo, tmp_path, *how)
    first, last = counted[1], counted[-1]
    assert last[0] > first[0] > 0 and last[1] == first[1] > 0, counted


# --- It scales losses


def test_skipped_steps_of_fp16_change_nothing_but_the_scale(tmp_path: Path) -> None:
    """A scale so large that the first gradients overflow: the step counts in the schedule, as everywhere in torch, and
    leaves the weights alone; later ones train."""
    made = trainer(tmp_path, max_steps=12, precision="fp16", evaluate_every=0, device=DEVICE)
    made.precision.scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**40)
    train, seen = made._one_step, []

    def one_step(batches: Any) -> None:
        before = [parameter.clone() for parameter in made.network.parameters()]
        train(batches)
        pairs = zip(before, made.network.parameters(), strict=True)
        seen.append((any(not torch.equal(*pair) for pair in pairs), made.precision.scaler.get_scale()))

    made._one_step = one_step
    made.fit()
    assert made.step == 12 and not seen[0][0] and seen[0][1] == 2.0**39
    moved = [changed for changed, _ in seen]
    assert moved[-1] or seen[-1][1] == 2.0**28  # twelve overflows are not enough to come down to the range
    assert all(parameter.isfinite().all() for parameter in made.network.parameters())


# --- It survives


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_cut_goes_on_bit_for_bit(number: signal.Signals, demo: Path, tmp_path: Path) -> None:
    how = ["trainer.deterministic=true", "flows=3", GPUS, f"demo.root={demo}", "trainer.evaluate_every=0"]
    how += ["trainer.max_steps=40", "trainer.log_every=1"]

    def begun(name: str) -> Any:
        return start([*how, f"run_dir={tmp_path / name}"], tmp_path / f"{name}.txt")

    assert begun("whole").wait(200) == 0, (tmp_path / "whole.txt").read_text()
    process, log = begun("cut"), tmp_path / "cut/metrics.jsonl"
    assert until(lambda: log.exists() and log.read_text().count("\n") > 7, process), (tmp_path / "cut.txt").read_text()
    os.killpg(process.pid, number)
    assert process.wait(100) == (75 if number == signal.SIGTERM else -9)
    assert begun("cut").wait(200) == 0, (tmp_path / "cut.txt").read_text()
    assert same(trained(tmp_path / "whole"), trained(tmp_path / "cut"))


def test_too_little_memory_is_one_line(demo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small = [f"task=imagenet recipe=demo demo.root={demo} run_dir={tmp_path} trainer.pictures=0 loader.workers=0", GPUS]
    how = " ".join(small).split() + TINY["imagenet"].split() + ["trainer.batch=8", "trainer.max_steps=1"]
    if REAL:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(0) + 2**22) / total)
        refused = nullcontext()
    else:
        said = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.\nMore")
        refused = mock.patch.object(Trainer, "_one_step", mock.Mock(side_effect=said))
    try:
        with refused:
            assert command(how) == 1
    finally:
        if REAL:
            torch.cuda.set_per_process_memory_fraction(1.0)
    error = capfd.readouterr().err.strip().splitlines()[-1]
    words = ("error: out of GPU memory: ", "trainer.batch=8", "trainer.accumulate=2", "tdaf.rematerialise=true")
    assert all(word in error for word in words), error


def test_peak_memory_is_what_is_predicted() -> None:
    """Of a step of ResNet-50 with TDAF in fp32: weights, gradients and momentum, and what is kept for backward. 0.9 to
    1.6 of it: convolutions have workspaces, and gradients of maps live beside them."""
    batch, size = (16, 224) if REAL else (2, 64)
    torch.manual_seed(0)
    network = TDAF(resnet(50), flows=3, anar=3)
    x = torch.rand(2, 3, size, size)
    saved = measure.saved_bytes(network, x) / 2 * batch
    predicted = saved + 3 * 4 * measure.parameters(network).total
    assert saved > 2**20 * batch
    if REAL:
        network = Precision("fp32", DEVICE).place(network)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for number in range(2):
            if number:
                torch.cuda.reset_peak_memory_stats(DEVICE)
            float32(network(x.to(DEVICE).repeat(batch // 2, 1, 1, 1))[-1]).mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        peak = torch.cuda.max_memory_allocated(DEVICE)
        assert 0.9 < peak / predicted < 1.6, (peak, predicted)


# --- Several cards


def ranked(config: dict[str, Any], folder: Path, ranks: int) -> dict[str, Any]:
    config = config | {"run_dir": str(folder)}
    assert spawn(run_rank, (run.train, config, ranks if REAL else 0), ranks) == 0
    return trained(folder)


@several
def test_ranks_of_any_number_train_the_same_network(demo: Path, tmp_path: Path) -> None:
    """NCCL, synchronised batch norm, gradients and evaluation: a step of 1, 2, ... ranks in fp32."""
    counts = [1, *itertools.takewhile(lambda count: count <= CARDS, (2, 4, 8))]
    how = ["trainer.sync_bn=true", "trainer.max_steps=1", "trainer.precision=fp32", "trainer.batch=8", "flows=3"]
    how += ["optim=sgd", "optim.lr=0.01", "optim.base_batch=8", "task.mixup=0", "task.cutmix=0", "demo.train=16"]
    how += ["schedule=constant", "schedule.warmup_epochs=0", "trainer.deterministic=true"]
    config = tiny("imagenet", demo, *how, GPUS)
    weights = [ranked(config, tmp_path / str(count), count)["network"] for count in counts]
    for name, expected in weights[0].items():
        for found in weights[1:]:
            if expected.is_floating_point():
                torch.testing.assert_close(found[name], expected, atol=5e-4, rtol=2e-3)


@several
def test_ranks_told_to_stop_save_and_go_on(demo: Path, tmp_path: Path) -> None:
    """SIGTERM to all of them, as from a cluster; the same command then ends the run."""
    how = ["trainer.max_steps=40", f"demo.root={demo}", f"run_dir={tmp_path / 'run'}", "trainer.log_every=1"]
    ranks = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "train.py")
    program, gpus = (("train.py",), ["gpus=2"]) if REAL else (ranks, ["gpus=0"])
    process, log = start([*how, *gpus], tmp_path / "out.txt", program), tmp_path / "run/metrics.jsonl"
    assert until(lambda: log.exists() and log.read_text().count("\n") > 3, process), (tmp_path / "out.txt").read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) == (75 if REAL else 1), (tmp_path / "out.txt").read_text()
    assert start([*how, *gpus], tmp_path / "out.txt", program).wait(200) == 0, (tmp_path / "out.txt").read_text()
    assert (tmp_path / "run/summary.json").exists() and ROOT.exists()
