"""The one training loop. It knows a task by its protocol, and time by one clock: the optimizer step."""

from __future__ import annotations

import datetime
import functools
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tdaf.engine import checkpoint, data, dist, optim
from tdaf.engine.data import Loader, TrainingOrder
from tdaf.engine.evaluate import EARLY, Evaluation, evaluate, is_better, is_defined
from tdaf.engine.health import Preemption, Watchdog
from tdaf.engine.log import LossMeter, RunFolder, Throughput, mean_losses
from tdaf.engine.precision import Precision, check_compiler, deterministic, float32
from tdaf.engine.schedule import Schedule, cosine
from tdaf.engine.settings import LoaderSettings, Settings
from tdaf.engine.summary import introduce, summarise
from tdaf.errors import Preempted, RunError, UserError
from tdaf.streams import Bar, lossy_streams
from tdaf.task import Batch, Task


class Trainer:
    """Trains a network on a task, alone or as one of torchrun's ranks, and goes on with the run in `run_dir`.

    A network that is in eval mode is put into train mode; of one that is in train mode, modules in eval mode (a frozen
    teacher) stay in it.

    Args:
        task: what is trained for; its second protocol, PredictionTask, is optional.
        network: moved to the device, and trained in place.
        settings: None: Settings().
        run_dir: the run's folder. One that holds a run is gone on with; one that holds a finished run stays as it is.
        optimizer: makes the optimizer from the network, with learning rates that the schedule's factor multiplies.
            None: SGD with momentum 0.9, weight decay 1e-4 and 0.1 for 256 samples a step (paper, Sec. 4.1).
        schedule: called with `steps_per_epoch` and `steps`, makes the Schedule. None: a cosine without warm-up.
        loader: how samples are read; None: LoaderSettings().
        seed: of the order of samples, their random numbers, and each rank's generators while it trains. (The first
            weights are the network's own.)
        device: None: the GPU if there is one.
        about: plain data stored with every checkpoint, beside the classes' names and the samples; "config", the run's
            settings, is written into summary.json too.
        name: of the run's task in its log and summary; None: the task's class.
        files: texts that the folder is to hold, by file name.
        notes: lines that the log begins with.
        changed_data: whether to go on with a run whose data had other classes or samples.

    Attributes:
        step: optimizer steps made. epoch: the same in epochs. steps: how many there are to make.
        network, ema, eval_network: what trains, its Average (or None), and the module of the two that is evaluated.
        last: the last Evaluation. best: its "value", "step" and "epoch" at the best one.

    Raises:
        UserError: settings that do not go together. On several ranks it is raised on all of them.
    """

    def __init__(
        self,
        task: Task,
        network: nn.Module,
        settings: Settings | None = None,
        *,
        run_dir: str | Path,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
        schedule: Callable[..., Schedule] | None = None,
        loader: LoaderSettings | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        about: Mapping[str, Any] | None = None,
        name: str | None = None,
        files: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
        changed_data: bool = False,
    ) -> None:
        self.task, self.settings, self.loading = task, settings or Settings(), loader or LoaderSettings()
        self.seed, self.name, self.files, self.notes = seed, name or type(task).__name__, files or {}, notes
        self.about, self.changed_data = {"classes": list(task.classes), **(about or {})}, changed_data
        self.timeout = dist.collective_timeout(self.settings.hang_timeout, self.loading.timeout)
        self.device = dist.join(device, self.timeout)
        self.folder = RunFolder(Path(run_dir), quiet=dist.rank() != 0, log=self.settings.log)
        self.step, self.evaluated = 0, 0
        self.best: dict[str, Any] = {}
        self.last: Evaluation | None = None
        self.meter, self.throughput = LossMeter(), Throughput()
        usual = functools.partial(optim.optimizer, lr=0.1, weight_decay=1e-4, base_batch=256, batch=self.settings.batch)
        schedule = schedule or functools.partial(Schedule, cosine())
        dist.run_on_all_ranks(lambda: self._build(network, optimizer or usual, schedule))

    def _build(self, network: nn.Module, optimizer: Callable[..., Any], schedule: Callable[..., Schedule]) -> None:
        settings = self.settings
        self.precision = Precision(settings.precision, self.device, settings.channels_last)
        self.network = self.precision.place(network)
        if settings.sync_bn and dist.world() > 1:
            self.network = dist.synchronise(self.network, self.device)
        self.optimizer = optimizer(self.network)
        for group in self.optimizer.param_groups:
            group.setdefault("base_lr", group["lr"])
        self.ema = optim.Average(self.network, settings.ema) if settings.ema else None
        self.train_set, self.val_set = self.task.dataset("train"), self.task.dataset("val")
        self.about |= {"class_ids": list(task.class_ids)} if hasattr(task := self.task, "class_ids") else {}
        self.about["samples"] = checkpoint.samples_of({"train": self.train_set, "val": self.val_set})
        order = self._order()
        self.micro_batch, self.steps_per_epoch = order.micro, order.steps_per_epoch
        whole = math.ceil(settings.epochs * self.steps_per_epoch) if settings.epochs else settings.max_steps
        self.steps = min(whole, settings.max_steps or whole)
        self.schedule = schedule(steps_per_epoch=self.steps_per_epoch, steps=whole)
        if settings.compile:
            check_compiler(self.device)
            self.network.compile()  # before DistributedDataParallel, which then overlaps its all-reduces with backward

    @property
    def epoch(self) -> float:
        return self.step / self.steps_per_epoch

    @property
    def _interval(self) -> int:
        every = self.settings.evaluate_every
        return max(1, round(every * self.steps_per_epoch)) if every else self.steps

    @property
    def eval_network(self) -> nn.Module:
        return self.ema.module if self.ema is not None else self.network

    @dist.explain_peer_failure()
    def fit(self) -> Evaluation:
        """Trains to the end, from the last checkpoint in the run folder if there is one.

        Returns:
            The last evaluation. Of a finished run it is returned at once, with the run's weights in the network.

        Raises:
            UserError: the folder cannot be used, or holds another run.
            RunError: a fault; nothing saved is lost.
            Preempted: told to stop, saved.
        """
        if self._is_finished():
            return self.last
        with self._session() as (batches, bar):
            self._evaluate_if_due()
            self.throughput.start()
            while self.step < self.steps and not self._is_stale():
                self.stop.poll()
                self._one_step(batches)
                self.watchdog.beat()
                bar.advance()
                stopping = self.stop.should_stop()
                pause = stopping or self._is_due() or self.step % self.settings.checkpoint_every == 0
                if pause or self.step % self.settings.log_every == 0:
                    self._report()
                if pause:
                    self._save()
                    if stopping:
                        raise Preempted
                    self._evaluate_if_due()
                    self.throughput.start()
            if self.step < self.steps:
                self.folder.say(f"stopped: {self.settings.stop_after} evaluations without a better one")
            summarise(self)
        return self.last

    def _one_step(self, batches: Generator[Batch, None, None]) -> None:
        """One optimizer step over `accumulate` micro-batches. Of the device only fp16's GradScaler is waited for."""
        self.rate = optim.set_rate(self.optimizer, self.schedule.factor(self.step))
        count = self.settings.accumulate
        for number in range(1, count + 1):
            with self.throughput.waiting():
                batch = next(batches)
            if len(batch["index"]) == 0:
                raise RunError("not one sample of a batch could be read; see max_bad and scripts/check_data.py")
            with nullcontext() if number == count or self.parallel is self.network else self.parallel.no_sync():
                self._backward(batch, 1 / count)
        if self.settings.clip:
            self.precision.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.network)
        self.step += 1
        self.throughput.step()

    def _backward(self, batch: Batch, weight: float) -> None:
        moved = self.precision.move(batch)
        with self.precision.autocast():
            outputs = self.parallel(moved["input"])
        losses = self.task.losses(float32(outputs), moved)
        self.precision.scaler.scale(sum(losses.values()) * weight).backward()
        self.meter.add(self.step + 1, {name: loss.detach() for name, loss in losses.items()}, batch["index"])

    # Evaluating

    def _is_due(self) -> bool:
        return self.step > 0 and (self.step == self.steps or self.step % self._interval == 0)

    def _is_stale(self) -> bool:
        """Whether `stop_after` evaluations were no better than the best."""
        patience = self.settings.stop_after
        return bool(patience and self.best) and self.evaluated - self.best["step"] >= patience * self._interval

    def _evaluate_if_due(self) -> None:
        if not self._is_due() or self.evaluated == self.step:
            return
        for network in filter(None, (self.network, self.ema and self.ema.module)):
            dist.average_buffers(network)
        how = {"loader": self.loading, "precision": self.precision, "seed": self.seed, "batch": self.micro_batch}
        how |= {"task": self.task, "split": self.val_set, "progress": self._evaluating}
        self.last = evaluate(self.eval_network, **how)
        early = self.ema is not None and self.step <= EARLY * self._interval
        lagging = self.last.behind(evaluate(self.network, **how), self.task.metric) if early else ""
        self.reading, self.evaluated = self.training, self.step
        self.schedule.step(self.last.values)
        if better := self._is_best():
            self.best = {"value": self.last.values[self.task.metric], "step": self.step, "epoch": self.epoch}
        self.folder.event("val", self.step, self.epoch, self.last.values)
        self.folder.say(f"epoch {self.epoch:.4g} val: {self.last}{' *' if better else ''}{lagging}")
        if dist.rank() == 0:
            self._keep(better)
        self.watchdog.beat()
        self._save()

    def _keep(self, better: bool) -> None:
        if self.settings.pictures and hasattr(self.task, "visualize"):
            from tdaf.engine.visualize import log_samples  # and with it all that draws

            count, where = self.settings.pictures, (self.precision, self.folder, self.step)
            log_samples(self.eval_network, self.task, self.val_set, count, *where)
        values, folder = self.last.values, self.folder.checkpoints
        state = {"network": self.eval_network.state_dict(), "step": self.step, "metric": values, "about": self.about}
        if self.settings.keep > 1 and is_defined(values[self.task.metric]):
            checkpoint.save_among_best(state, folder, values[self.task.metric], self.settings.keep)
        if better:
            checkpoint.save(state, folder / checkpoint.BEST)
        for name, text in self.last.files.items() if better else ():
            self.folder.write(f"results/{name}", text)

    def _evaluating(self, loader: Loader) -> None:
        """Between two batches of an evaluation, before which all was saved: a single rank may leave at once."""
        self.reading = loader
        self.watchdog.beat()
        if self.stop.requested and dist.world() == 1:
            raise Preempted

    def _is_best(self) -> bool:
        metric, values = self.task.metric, self.last.values
        if metric not in values:
            raise RunError(f"the evaluation gives {', '.join(values)}, and not the task's metric {metric}")
        if not self.best and not is_defined(values[metric]):
            self.folder.say(f"{metric}={values[metric]} is not defined: until it is, the last network is the best")
        return is_better(values[metric], self.best["value"] if self.best else math.nan)

    # The run folder: opening, reporting, saving

    @contextmanager
    def _session(self) -> Iterator[tuple[Generator[Batch, None, None], Bar]]:
        """What is open while a run trains: folder, network on all ranks, loader, stop signals, watchdog."""
        with lossy_streams(), self.folder, deterministic(self.settings.deterministic):
            dist.run_on_all_ranks(self._open)
            dist.check_shared(self.step, self.folder.folder)
            self.parallel = dist.data_parallel(self.network, self.device, self.settings.deterministic)
            if not self.network.training:
                self.network.train()
            self.training = self.reading = self.training_loader()
            folder, limit, stalled = self.folder.folder, self.settings.hang_timeout, lambda: self.reading.stalled()
            with (
                Preemption(self.timeout) as self.stop,
                Watchdog(limit, folder, stalled) as self.watchdog,
                Bar("train", self.steps, self.step, quiet=self.folder.quiet) as bar,
                closing(iter(self.training)) as batches,  # its workers end here, not when an error's trace is gone
            ):
                try:
                    yield batches, bar
                except RuntimeError as error:
                    raise self.training.explained(error) from None

    def _is_finished(self) -> bool:
        """Whether the folder holds a finished run; its evaluation and weights are then read from it."""
        summary = dist.broadcast(dist.run_on_all_ranks(self.folder.summary))
        if summary is None:
            return False
        dist.run_on_all_ranks(self._load_last)
        if self.step not in (0, self.steps) and not self._is_stale():
            steps = f"a finished run of {self.step} steps, and these settings make {self.steps}"
            raise UserError(f"run_dir={self.folder.folder} holds {steps}; give another run_dir")
        self.last = Evaluation(summary["metrics"], *(summary[name] for name in ("samples", "skipped", "protocol")))
        if dist.rank() == 0:
            print(self.folder.finished(), flush=True)
        return True

    def _open(self) -> None:
        self.folder.lock()
        data.seed_everything(data.mix_seed(self.seed, "rank", dist.rank()))
        going_on, note = self._load_last()
        self._saved = self.step if going_on and not note else None  # the step of a whole LAST
        if self.step > self.steps:
            raise UserError(f"run_dir={self.folder.folder} is at step {self.step}: these settings end at {self.steps}")
        self.folder.start(self.step, self.evaluated, self.about.get("config"))
        for name, text in self.files.items():
            self.folder.write(name, text)
        for line in filter(None, [note, *self.notes]):
            self.folder.say(line)
        if going_on:
            self.folder.say(f"going on from step {self.step} of {self.steps}")
        else:
            introduce(self)

    def training_loader(self) -> Loader:
        """This rank's batches from the next step on."""
        pin = self.device.type == "cuda"
        return Loader(self.train_set, self._order(self.step), seed=self.seed, pin=pin, **vars(self.loading))

    def _order(self, start: int = 0) -> TrainingOrder:
        ranks = {"rank": dist.rank(), "ranks": dist.world(), "accumulate": self.settings.accumulate}
        how = {"seed": self.seed, "start": start, "groups": self.train_set.groups, **ranks}
        return TrainingOrder(len(self.train_set), self.settings.batch, **how)

    def _report(self) -> None:
        """Logs the mean losses since the last report. RunError if one of them was not finite."""
        mine = dist.run_on_all_ranks(self.meter.read)
        shares = dist.gather(mine) or [mine]
        losses = dist.run_on_all_ranks(lambda: mean_losses(shares))
        step_time, data_time = self.throughput.read()
        total, speed = sum(losses.values()), self.settings.batch / step_time
        values = {"loss": total, **losses, "lr": self.rate, "images_per_second": speed, "data_seconds": data_time}
        self.folder.event("train", self.step, self.epoch, values)
        left = datetime.timedelta(seconds=round(step_time * (self.steps - self.step)))
        times = f"{speed:.1f} images/s (step {step_time * 1000:.0f} ms, data {data_time * 1000:.0f} ms) left {left}"
        where = f"epoch {self.epoch:.2f} step {self.step}/{self.steps}"
        self.folder.say(f"{where} loss {total:.4f} lr {self.rate:.4g} {times}")

    def _save(self) -> None:
        """Saves what training goes on with, and changes nothing of it: between two evaluations running statistics are
        each rank's own, and so are they saved. (A run that goes on with another number of ranks takes the first one's.)
        """
        if not nn.utils.get_total_norm(self.network.parameters()).isfinite():
            raise RunError(f"non-finite weights at step {self.step}; the checkpoint before is kept: try clip=1")
        mine = {"rng": data.generator_state(self.device)}
        if dist.world() > 1:
            networks = {"network": self.network, "ema": self.ema and self.ema.module}
            mine.update({name: dist.statistics(module) for name, module in networks.items() if module is not None})
        ranks = dist.gather(mine)
        # all wait: a rank that left while another writes would have it ended by whoever started them
        dist.run_on_all_ranks(lambda: self._write(ranks) if dist.rank() == 0 else None)

    def _write(self, ranks: list[dict[str, Any]]) -> None:
        state = {
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "rng": [rank.pop("rng") for rank in ranks],
            "statistics": ranks if dist.world() > 1 else None,
            "about": self.about,
            "step": self.step,
            "evaluated": self.evaluated,
            "pace": self.throughput.state_dict(),
            "schedule": self.schedule.state_dict(),
            "best": self.best,
            "last": self.last.as_dict() if self.last else None,
        }
        # what is kept is of an earlier step and whole, so that a damaged LAST always has something to fall back on
        keep = self.folder.checkpoints / checkpoint.PREVIOUS if self._saved not in (None, self.step) else None
        checkpoint.save(state, self.folder.checkpoints / checkpoint.LAST, keep)
        self._saved = self.step

    def _load_last(self) -> tuple[bool, str]:
        """Goes back to the run folder's last checkpoint. Whether there is one, and what there is to say of it."""
        state, note = checkpoint.load_last(self.folder.checkpoints)
        if state is not None:
            self._restore(state)
        return state is not None, note

    def _restore(self, state: dict[str, Any]) -> None:
        """Puts everything back to where `state` was saved. UserError if it is of other data, network or optimizer."""
        if not self.changed_data:
            checkpoint.check_unchanged(state.get("about", {}), self.about, f"the run in {self.folder.folder}")
        same_ranks = len(state["rng"]) == dist.world()
        own = state["statistics"][dist.rank()] if same_ranks and state.get("statistics") else {}
        try:
            self.network.load_state_dict({**state["network"], **own.get("network", {})})
            if self.ema is not None:
                averaged = {f"module.{name}": value for name, value in own.get("ema", {}).items()}
                self.ema.load_state_dict({**state["ema"], **averaged})
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"the run folder's checkpoint is of another network: {str(error)[:200]!r}") from error
        self.precision.scaler.load_state_dict(state["scaler"])
        self.throughput.load_state_dict(state["pace"])
        self.schedule.load_state_dict(state.get("schedule", {}))
        self.step, self.evaluated, self.best = state["step"], state["evaluated"], state["best"]
        self.last = Evaluation(**state["last"]) if state["last"] else None
        if same_ranks:
            data.restore_generators(state["rng"][dist.rank()], self.device)
