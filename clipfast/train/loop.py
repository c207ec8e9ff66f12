"""The training run: epochs of steps, and what is done between them."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple, NoReturn

from torch import Tensor

from clipfast.data.batch import Batch
from clipfast.data.device_prefetch import prefetch
from clipfast.errors import UserError
from clipfast.models.locking import rest_locked_towers
from clipfast.ranks.agreement import refuse
from clipfast.ranks.launch import joined
from clipfast.ranks.watchdog import Watchdog
from clipfast.train.checkpoints.checkpoints import Checkpoints
from clipfast.train.checkpoints.resume import order_state
from clipfast.train.checkpoints.run_folder import Position, RunFolder
from clipfast.train.checkpoints.signals import StopSignal
from clipfast.train.evaluation import write_results
from clipfast.train.evaluation_only import evaluate_only
from clipfast.train.flags.evaluation import only_evaluates
from clipfast.train.monitoring.examples import save_examples
from clipfast.train.monitoring.monitor import Monitor, StepRecord, Stopwatch
from clipfast.train.setup import Parts, describe, set_up, warnings_of
from clipfast.train.step import Outcome, take_step

logger = logging.getLogger("clipfast.train")

_MAX_SKIPPED_IN_A_ROW = 10


class Summary(NamedTuple):
    """What a run leaves to its caller.

    Attributes:
        model: trained, in eval mode: a `clipfast.models.clip.TwoTowers`, or open_clip's own.
        folder: the run's files.
        losses: one per step taken in this call.
        samples_per_second: over those steps, of all ranks, waiting for data included.
        rejected: how many samples were replaced, on all ranks, because they could not be used.
    """

    model: Any
    folder: RunFolder
    losses: list[float]
    samples_per_second: float
    rejected: int


class Interrupted(Exception):
    """The run was asked to stop; its state is saved.

    Attributes:
        signal_number: the signal that asked.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def train(args: argparse.Namespace) -> Summary:
    """Trains as the flags say, as one of the processes that a launcher started.

    Args:
        args: what `parse_args` returned.

    Raises:
        UserError: a mistake in flags or data, or a loss that stays non-finite; on every rank.
        Interrupted: SIGINT or SIGTERM came to one; the state was saved first.
    """
    with joined(args) as world, Watchdog(world, args.rank_timeout) as watchdog:
        if only_evaluates(args):
            watchdog.phase("evaluation", slow=True)
            return Summary(*evaluate_only(args, world), [], 0.0, 0)
        parts = set_up(args, world)
        watchdog.stacks = parts.folder.path
        monitor = Monitor(
            args,
            parts.folder.path,
            world,
            steps_per_epoch=parts.sampler.steps_per_epoch,
            start=parts.start,
        )
        with monitor, Checkpoints(args, parts.folder, world) as checkpoints:
            run = _Run(parts, monitor, checkpoints, watchdog)
            run.announce()
            return run.go()


class _Run:
    """One call of `train`: its parts, and the loop over them."""

    def __init__(
        self, parts: Parts, monitor: Monitor, checkpoints: Checkpoints, watchdog: Watchdog
    ) -> None:
        self.parts, self.monitor = parts, monitor
        self.checkpoints, self.watchdog = checkpoints, watchdog
        self.args, self.world, self.engine = parts.args, parts.world, parts.engine
        self.steps_per_epoch = parts.sampler.steps_per_epoch
        self.buffers = list(parts.model.buffers())
        self.buffers_before = [buffer.clone() for buffer in self.buffers]
        self.skipped_in_a_row = 0
        self.signals = StopSignal()
        self.stop_asked, self.save_asked = 0, False  # as all ranks know it

    def announce(self) -> None:
        """Says at the start what will run on what."""
        parts = self.parts
        for line in warnings_of(parts):
            logger.warning(line)
        self.monitor.announce(describe(parts))
        self.monitor.watch(parts.model)
        if self.world.is_main:
            for fault in parts.samples.faults():
                parts.quarantine.found(fault)
            save_examples(parts.folder.path / "examples", parts.loader)

    def go(self) -> Summary:
        start = self.parts.start
        self.parts.model.train()
        rest_locked_towers(self.parts.model)  # open_clip's own models do not do so themselves
        with self.signals:
            for epoch in range(start.epoch, self.args.epochs):
                self._epoch(epoch, start.step if epoch == start.epoch else 0)
                self._after_epoch(epoch + 1)
        if self.skipped_in_a_row:
            raise UserError(
                f"the last {self.skipped_in_a_row} steps had no finite loss; expected one; stopped "
                f"without saving, the last checkpoint in {self.parts.folder.path} stands"
            )
        self.watchdog.phase("the end", slow=True)
        self.checkpoints.finish()
        rejected = sum(self.world.all(self.parts.quarantine.replaced))
        checkpoint = self.parts.folder.checkpoints / f"epoch_{self.args.epochs}.pt"
        self.monitor.finish(replaced=rejected, files=[checkpoint] * checkpoint.exists())
        return Summary(
            self.parts.model.eval(),
            self.parts.folder,
            self.monitor.losses,
            self.monitor.samples_per_second,
            rejected,
        )

    def _epoch(self, epoch: int, first_step: int) -> None:
        batches = prefetch(self.parts.loader.epoch(epoch, first_step), self.world.device)
        clock = Stopwatch()
        for step in range(first_step, self.steps_per_epoch):
            batch = self._next(batches, epoch * self.steps_per_epoch + step)
            self._step(epoch, step, batch, data_time=clock.lap(), clock=clock)
            self._after_step(Position(epoch, step + 1))
            clock.lap()

    def _next(self, batches: Iterator[Batch], global_step: int) -> Batch:
        """This rank's next batch, once every rank has one. What one rank alone knows, a fault or a
        signal, all know from here on."""
        self.watchdog.phase("data", global_step)
        batch, fault = None, None
        try:
            batch = next(batches)
        except (UserError, OSError) as error:
            fault = error
        checkpoints, signals = self.checkpoints, self.signals
        failed, self.stop_asked, save_asked, unfinished = self.world.most(
            fault is not None,
            signals.requested,
            signals.save_requested or checkpoints.wanted,
            checkpoints.unfinished,
        )
        self.save_asked = bool(save_asked)
        if failed:
            self._fail_together(fault)
        if not unfinished:
            checkpoints.settle()
        assert batch is not None
        return batch

    def _fail_together(self, fault: UserError | OSError | None) -> NoReturn:
        """Ends the run on every rank; the main one says why."""
        if self.world.size == 1:
            assert fault is not None
            raise fault
        sentences = self.world.all(None if fault is None else str(fault))
        rank, sentence = next((r, s) for r, s in enumerate(sentences) if s is not None)
        refuse(self.world, f"rank {rank}: {sentence}")

    def _step(
        self, epoch: int, step: int, batch: Batch, *, data_time: float, clock: Stopwatch
    ) -> None:
        global_step = epoch * self.steps_per_epoch + step
        first = Position(epoch, step) == self.parts.start
        self.watchdog.phase("computing", global_step, slow=first)  # compilers run then
        lr = self.parts.schedule(global_step)
        _copy(self.buffers, to=self.buffers_before)
        outcome = take_step(
            self.engine,
            self.parts.objective,
            batch,
            micro_batches=self.args.accum_freq,
            lr=lr,
        )
        self._judge(global_step, outcome)
        record = StepRecord(
            loss=outcome.losses["loss"],
            logit_scale=outcome.logit_scale,
            lr=lr,
            data_time=data_time,
            batch_time=data_time + clock.lap(),
            parts={name: value for name, value in outcome.losses.items() if name != "loss"},
            grad_norm=outcome.grad_norm,
            skipped=outcome.fault is not None,
        )
        self.monitor.step(epoch, step, record)
        if self.skipped_in_a_row == _MAX_SKIPPED_IN_A_ROW:
            raise UserError(
                f"step {global_step}: {outcome.fault}; expected a finite loss, got "
                f"{_MAX_SKIPPED_IN_A_ROW} steps in a row without; stopped, the last checkpoint in "
                f"{self.parts.folder.path} stands"
            )

    def _judge(self, global_step: int, outcome: Outcome) -> None:
        """A step that was not taken leaves BatchNorm's statistics as they were, too."""
        if outcome.fault is not None:
            _copy(self.buffers_before, to=self.buffers)
            self.skipped_in_a_row += 1
            logger.warning(f"step {global_step}: {outcome.fault}; step skipped")
            return
        self.skipped_in_a_row = 0
        if self.parts.ema is not None:
            self.parts.ema.update()

    def _after_step(self, done: Position) -> None:
        global_step = done.epoch * self.steps_per_epoch + done.step
        stop = self.stop_asked
        if stop or self.save_asked or self.checkpoints.due(global_step):
            self._save_state(done, global_step)
        if stop:
            self.checkpoints.finish()
            raise Interrupted(
                f"stopped after step {global_step}, as asked; go on with "
                f"--name {self.args.name} --resume latest",
                stop,
            )

    def _save_state(self, done: Position, global_step: int) -> None:
        if self.skipped_in_a_row:
            return  # what makes losses infinite may be in the weights
        self.watchdog.phase("saving", global_step, slow=True)
        self.checkpoints.save_state(done, global_step, self.engine, self._content())

    def _content(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the engine's."""
        content: dict[str, Any] = {"order": order_state(self.parts.sampler, self.parts.samples)}
        if self.parts.ema is not None:
            content["ema"] = self.parts.ema.state_dict()
        return content

    def _after_epoch(self, epochs_done: int) -> None:
        if self.skipped_in_a_row:
            return
        global_step, ema = epochs_done * self.steps_per_epoch, self.parts.ema
        self.watchdog.phase("saving", slow=True)
        self.checkpoints.after_epoch(
            epochs_done,
            global_step,
            self.engine,
            self._content(),
            None if ema is None else ema.weights(),
        )
        self._evaluate(epochs_done, global_step)

    def _evaluate(self, epochs_done: int, global_step: int) -> None:
        """Of the averaged weights, where they are kept."""
        evaluator, ema = self.parts.evaluator, self.parts.ema
        if evaluator is None or not evaluator.due(epochs_done):
            return
        self.watchdog.phase("evaluation", slow=True)
        averaged = nullcontext() if ema is None else ema.applied()
        with self.monitor.paused(), averaged, self.engine.whole_model() as model:
            metrics = evaluator(model, epochs_done)
        self.monitor.evaluated(epochs_done, global_step, metrics)
        if self.world.is_main:
            write_results(metrics, self.parts.folder.checkpoints)


def _copy(tensors: list[Tensor], *, to: list[Tensor]) -> None:
    for source, target in zip(tensors, to, strict=True):
        target.copy_(source)
