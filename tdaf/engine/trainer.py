"""The one training loop. It knows a task by its protocol, and time by one clock: the optimizer step."""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Callable, Generator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tdaf.engine import checkpoint, dist, optim, seeds
from tdaf.engine.evaluate import Evaluation, evaluate
from tdaf.engine.loader import Loader
from tdaf.engine.log import Bar, RunFolder
from tdaf.engine.meter import LossMeter
from tdaf.engine.order import TrainingOrder
from tdaf.engine.pace import Pace
from tdaf.engine.pictures import show
from tdaf.engine.precision import Precision, float32
from tdaf.engine.preempt import Preempted, Preemption
from tdaf.engine.schedule import Schedule
from tdaf.engine.settings import Settings
from tdaf.engine.syncbn import agree, synchronise
from tdaf.engine.watchdog import Watchdog
from tdaf.errors import RunError, UserError
from tdaf.task import Batch, Task


class Trainer:
    """Trains `network` on `task`, going on from the checkpoint in `folder` if there is one.

    order(start): the training order from a step on. loader(order): a loader of the training split.
    validation(): a loader of this rank's share of the validation split.
    make_optimizer(network) and make_schedule(steps_per_epoch, steps) build what their names say.
    about: plain data stored with every checkpoint and never read here: the resolved settings, the classes' names.
    """

    def __init__(
        self,
        settings: Settings,
        task: Task,
        network: nn.Module,
        *,
        make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        make_schedule: Callable[..., Schedule],
        order: Callable[[int], TrainingOrder],
        loader: Callable[[TrainingOrder], Loader],
        validation: Callable[[], Loader],
        folder: RunFolder,
        device: torch.device,
        about: dict[str, Any],
    ) -> None:
        self.settings, self.task, self.folder, self.device, self.about = settings, task, folder, device, about
        self.order, self.loader, self.validation = order, loader, validation
        torch.use_deterministic_algorithms(settings.deterministic, warn_only=True)
        if settings.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
            torch.backends.cudnn.benchmark = False
        self.precision = Precision(settings.precision, device, settings.channels_last)
        self.network = self.precision.place(network)
        if settings.sync_bn and dist.world() > 1:
            self.network = synchronise(self.network, device)
        self.optimizer = make_optimizer(self.network)
        averaging = get_ema_multi_avg_fn(settings.ema) if settings.ema else None
        self.ema = AveragedModel(self.network, multi_avg_fn=averaging) if settings.ema else None
        self.steps_per_epoch = order(0).steps_per_epoch
        whole = math.ceil(settings.epochs * self.steps_per_epoch) if settings.epochs else settings.max_steps
        self.steps = min(whole, settings.max_steps or whole)
        self.schedule = make_schedule(steps_per_epoch=self.steps_per_epoch, steps=whole)
        self.meter = LossMeter(device)
        self.step, self.evaluated, self.pace = 0, 0, Pace()
        self.best: dict[str, Any] = {}
        self.last: Evaluation | None = None
        if settings.compile:
            self.network.compile()

    @dist.losing_a_rank()
    def fit(self) -> None:
        """Trains to the end. RunError: a fault, nothing saved is lost; Preempted: told to stop, saved."""
        self.parallel = dist.parallel(self.network, self.device)  # not above, where a rank may fail alone
        self.reading = self.training = self.loader(self.order(self.step))
        limit, reading = self.settings.hang_timeout, lambda: self.reading.stalled()
        with Preemption() as self.stop, Watchdog(limit, self.folder.folder, dist.rank(), reading) as self.dog:
            self._evaluate_if_due()
            batches, bar = iter(self.training), Bar("train", self.steps, self.step, quiet=self.folder.quiet)
            try:
                self._loop(batches, bar)
            except RuntimeError as error:
                raise self.training.explained(error) from None
            finally:
                bar.stop()
                batches.close()  # its workers end here, and not when the last trace of an error is gone

    def _loop(self, batches: Generator[Batch, None, None], bar: Bar) -> None:
        self.pace.go()
        while self.step < self.steps:
            self.stop.ask()
            self._one_step(batches)
            self.dog.beat()
            bar.advance()
            stopping = self.stop.answer()
            pause = stopping or self._due() or self.step % self.settings.checkpoint_every == 0
            if pause or self.step % self.settings.log_every == 0:
                self._report()
            if pause:
                self._save()
                if stopping:
                    raise Preempted
                self._evaluate_if_due()
                self.pace.go()

    def _one_step(self, batches: Generator[Batch, None, None]) -> None:
        """One optimizer step over `accumulate` micro-batches. Nothing in here waits for the device."""
        self.rate = optim.set_rate(self.optimizer, self.schedule.factor(self.step))
        parts = self.settings.accumulate
        for part in range(parts):
            with self.pace.waiting():
                batch = next(batches)
            if len(batch["index"]) == 0:
                raise RunError("not one sample of a batch could be read; see data.max_bad and scripts/check_data.py")
            together = part == parts - 1 or self.parallel is self.network
            with nullcontext() if together else self.parallel.no_sync():
                self._backward(batch, 1 / parts)
        if self.settings.clip:
            self.precision.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        self.step += 1
        self.pace.step()

    def _backward(self, batch: Batch, weight: float) -> None:
        moved = self.precision.move(batch)
        with self.precision.autocast():
            outputs = self.parallel(moved["input"])
        losses = self.task.losses(float32(outputs), moved)
        self.precision.scaler.scale(sum(losses.values()) * weight).backward()
        self.meter.add(self.step + 1, {name: loss.detach() for name, loss in losses.items()}, batch["index"])

    @property
    def epoch(self) -> float:
        return self.step / self.steps_per_epoch

    def _due(self) -> bool:
        """Whether the step just made ends an interval of evaluation."""
        if self.step == self.steps or not self.settings.evaluate_every:
            return self.step == self.steps
        return self.step > 0 and self.step % max(1, round(self.settings.evaluate_every * self.steps_per_epoch)) == 0

    def _evaluating(self) -> None:
        """Between two batches of an evaluation, before which all was saved: a single rank may leave at once."""
        self.dog.beat()
        if self.stop.told and dist.world() == 1:
            raise Preempted

    def _evaluate_if_due(self) -> None:
        if not self._due() or self.evaluated == self.step:
            return
        agree(self.network, self.ema)
        judged = self.ema.module if self.ema is not None else self.network
        self.reading = self.validation()
        files: dict[str, str] = {}
        keep, beat = files.__setitem__, self._evaluating
        self.last = evaluate(judged, self.task, self.reading, self.precision, keep=keep, beat=beat)
        self.evaluated = self.step
        self.schedule.heard(self.last.values)
        value = self.last.values[self.task.metric]
        better = not self.best or value > self.best["value"]
        if better:
            self.best = {"value": value, "step": self.step, "epoch": self.epoch}
        self.folder.event("val", self.step, self.epoch, self.last.values)
        self.folder.say(f"epoch {self.epoch:.4g} val: {self.last}{' *' if better else ''}")
        if dist.rank() == 0 and self.settings.pictures:
            split, count = self.reading.dataset, self.settings.pictures
            show(judged, self.task, split, count, self.precision, self.folder, self.step)
        self.reading = self.training
        if better and dist.rank() == 0:
            best = {"network": judged.state_dict(), "step": self.step, "metric": self.last.values, "about": self.about}
            checkpoint.save(best, self.folder.checkpoints / checkpoint.BEST)
            for name, text in files.items():
                self.folder.write(f"results/{name}", text)
        self.dog.beat()
        self._save()

    def _report(self) -> None:
        """Logs the mean losses since the last report. RunError if one of them was not finite."""
        mine = dist.together(self.meter.read)
        shares = dist.gather(mine) or [mine]
        losses = {name: sum(share[name] for share in shares) / len(shares) for name in mine}
        step_time, data_time = self.pace.read()
        total, speed = sum(losses.values()), self.settings.batch / step_time
        values = {"loss": total, **losses, "lr": self.rate, "images_per_second": speed, "data_seconds": data_time}
        self.folder.event("train", self.step, self.epoch, values)
        left = datetime.timedelta(seconds=round(step_time * (self.steps - self.step)))
        self.folder.say(
            f"epoch {self.epoch:.2f} step {self.step}/{self.steps} loss {total:.4f} lr {self.rate:.4g} "
            f"{speed:.1f} images/s (step {step_time * 1000:.0f} ms, data {data_time * 1000:.0f} ms) left {left}"
        )

    def _save(self) -> None:
        if not nn.utils.get_total_norm(self.network.parameters()).isfinite():
            raise RunError(f"non-finite weights at step {self.step}; the checkpoint before is kept: try trainer.clip=1")
        agree(self.network, self.ema)
        rngs = dist.gather(seeds.state(self.device))
        # all wait: a rank that left while another writes would have it ended by whoever started them
        dist.together(lambda: self._write(rngs) if dist.rank() == 0 else None)

    def _write(self, rngs: list[dict[str, Any]]) -> None:
        state = {
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "rng": rngs,
            "about": self.about,
            "step": self.step,
            "evaluated": self.evaluated,
            "pace": self.pace.state(),
            "schedule": self.schedule.state(),
            "best": self.best,
            "last": dict(vars(self.last)) if self.last else None,
        }
        checkpoint.save(state, self.folder.checkpoints / checkpoint.LAST, self.folder.checkpoints / checkpoint.PREVIOUS)

    def restore(self, state: dict[str, Any]) -> None:
        """Puts everything back to where `state` was saved. UserError if it is of another network or optimizer."""
        try:
            self.network.load_state_dict(state["network"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"the run folder's checkpoint is of another network: {str(error)[:200]!r}") from error
        self.precision.scaler.load_state_dict(state["scaler"])
        self.pace.restore(state["pace"])
        self.schedule.restore(state.get("schedule", {}))
        self.step, self.evaluated, self.best = state["step"], state["evaluated"], state["best"]
        self.last = Evaluation(**state["last"]) if state["last"] else None
        if len(state["rng"]) == dist.world():
            seeds.restore(state["rng"][dist.rank()], self.device)
