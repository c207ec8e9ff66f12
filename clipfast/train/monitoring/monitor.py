"""What the person at the terminal, the log files and the dashboards learn of a run."""

from __future__ import annotations

import argparse
import logging
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

import clipfast
from clipfast.ranks.world import World
from clipfast.train.checkpoints.run_folder import Position
from clipfast.train.monitoring.codebase import copy_codebase
from clipfast.train.monitoring.dashboards import Dashboard, WeightsAndBiases, open_dashboards
from clipfast.train.monitoring.environment import environment
from clipfast.train.monitoring.history import FILE_NAME, History, read_history
from clipfast.train.monitoring.log_files import log_lines_written
from clipfast.train.monitoring.log_line import LogLine, evaluation_line
from clipfast.train.monitoring.memory import memory_in_use
from clipfast.train.monitoring.progress import TrainingBar
from clipfast.train.monitoring.records import StepRecord, Window
from clipfast.train.monitoring.summary import Fact, aligned, facts_of, final_facts

logger = logging.getLogger("clipfast.train")


class Monitor:
    """Progress bar, out.log in open_clip's format, history.jsonl, TensorBoard and wandb.

    It is entered once the run's folder is there, on every rank; the first alone tells anything. A
    disk that is full costs the run what cannot be written there, and not the run.

    Args:
        args: the run's flags.
        folder: the run's.
        world: its processes.
        steps_per_epoch: steps.
        start: what an earlier start has done already.

    Raises:
        UserError: a dashboard is not installed.
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        folder: Path,
        world: World,
        *,
        steps_per_epoch: int,
        start: Position,
    ) -> None:
        self._args, self._folder, self._world = args, folder, world
        self._steps_per_epoch = steps_per_epoch
        self._global_batch = args.batch_size * args.accum_freq * world.size
        self._done = start.epoch * steps_per_epoch + start.step
        self._losses = array("d")
        self._all = Window()
        self._failed = set[str]()
        self._parts = ExitStack()
        self._console = Console(
            stderr=True, highlight=False, force_terminal=None if world.is_main else False
        )
        self._line = LogLine(self._global_batch, world.size, steps_per_epoch)
        self._bar = TrainingBar(
            self._console,
            epochs=args.epochs,
            steps_per_epoch=steps_per_epoch,
            global_batch=self._global_batch,
            done=self._done,
        )
        self._dashboards: list[Dashboard] = []
        self._history: History | None = None

    def __enter__(self) -> Monitor:
        with ExitStack() as parts:
            parts.enter_context(
                log_lines_written(self._args, self._folder, self._world, self._console)
            )
            if self._world.is_main:
                self._open_files(parts)
            parts.callback(self._bar.stop)
            self._bar.start()
            self._parts = parts.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if self._history is not None and error is not None:
            history, outcome = self._history, str(error) or type(error).__name__
            self._spared(FILE_NAME, lambda: history.end(self._done, outcome))
        self._parts.close()

    @property
    def losses(self) -> list[float]:
        """One per step that was taken."""
        return list(self._losses)

    @property
    def samples_per_second(self) -> float:
        """Of all ranks over all steps so far, waiting for data included; 0 before the first."""
        seconds = self._all.batch_time
        return self._all.steps * self._global_batch / seconds if seconds else 0.0

    def announce(self, lines: Iterable[str]) -> None:
        """Says at the start what will run on what.

        Args:
            lines: ``name: value``, as the parts of the run describe themselves.
        """
        facts = facts_of(lines)
        logger.info(aligned(f"clipfast {clipfast.__version__}", facts))
        if self._history is not None:
            history, args = self._history, self._args
            self._spared(
                FILE_NAME,
                lambda: history.start(
                    self._done,
                    steps=args.epochs * self._steps_per_epoch,
                    epochs=args.epochs,
                    global_batch=self._global_batch,
                    announced=facts,
                    environment=environment(self._world),
                ),
            )

    def step(self, epoch: int, step: int, record: StepRecord) -> None:
        """Takes note of a step, taken or skipped; `step` counts from 0 in its epoch."""
        self._all.add(record)
        if not record.skipped:
            self._losses.append(record.loss)
        if not self._world.is_main:
            return
        global_step = epoch * self._steps_per_epoch + step
        self._done = global_step + 1
        self._line.add(record)
        if self._bar.add(record, self._done):
            self._bar.show(self._done, memory_in_use(self._world.device))
        self._keep(global_step, record)
        due = step % self._args.log_every_n_steps == 0 or step + 1 == self._steps_per_epoch
        if due and not record.skipped:
            scalars = self._line.scalars(record)
            logger.info(self._line.write(epoch, step, record))
            self._show(lambda dashboard: dashboard.step(global_step, scalars))

    def evaluated(self, epochs_done: int, global_step: int, metrics: Mapping[str, float]) -> None:
        """Takes note of an evaluation.

        Args:
            global_step: steps done.
            metrics: under open_clip's names.
        """
        if not self._world.is_main or not metrics:
            return
        logger.info(evaluation_line(epochs_done, metrics))
        self._show(lambda dashboard: dashboard.evaluated(epochs_done, global_step, metrics))
        if self._history is not None:
            history = self._history
            self._spared(FILE_NAME, lambda: history.evaluation(epochs_done, global_step, metrics))

    def watch(self, model: Any) -> None:
        """With ``--debug``, wandb shows the model's gradients and weights."""
        for dashboard in self._dashboards:
            if self._args.debug and isinstance(dashboard, WeightsAndBiases):
                dashboard.watch(model)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside it, another may draw a bar."""
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()

    def finish(self, *, replaced: int, files: Iterable[Path]) -> None:
        """Sums the run up.

        Args:
            replaced: samples of all ranks that could not be used.
            files: to use next: the last checkpoint, where there is one.
        """
        self._bar.stop()
        if self._history is None:
            return
        history = self._history
        self._spared(FILE_NAME, history.flush)
        facts = final_facts(
            steps=self._all.steps,
            seconds=self._all.batch_time,
            samples_per_second=self.samples_per_second,
            data_wait=self._all.data_wait,
            skipped=self._all.skipped,
            memory=memory_in_use(self._world.device),
            evaluations=self._evaluations(),
            files=self._files(files),
        )
        faults = f"unusable samples replaced: {replaced:,}, listed in quarantine.jsonl"
        title = f"done: {self._args.epochs} epochs; {faults if replaced else 'no faults'}"
        logger.info(aligned(title, facts))
        self._spared(FILE_NAME, lambda: history.end(self._done, "done", replaced=replaced))

    def _open_files(self, parts: ExitStack) -> None:
        args = self._args
        if args.copy_codebase:
            copy_codebase(self._folder)
        self._history = History(
            self._folder / FILE_NAME,
            steps_per_epoch=self._steps_per_epoch,
            total_steps=args.epochs * self._steps_per_epoch,
            global_batch=self._global_batch,
        )
        parts.callback(self._spared, FILE_NAME, self._history.flush)
        self._dashboards = open_dashboards(
            args,
            self._folder,
            samples=self._steps_per_epoch * self._global_batch,
            global_step=self._done,
        )
        for dashboard in self._dashboards:
            parts.callback(self._spared, dashboard.name, dashboard.close)

    def _keep(self, global_step: int, record: StepRecord) -> None:
        history = self._history
        if history is not None and history.step(global_step, record):
            memory = memory_in_use(self._world.device)
            self._spared(FILE_NAME, lambda: history.point(global_step, record, memory))

    def _show(self, what: Callable[[Dashboard], None]) -> None:
        for dashboard in self._dashboards:
            self._spared(dashboard.name, what, dashboard)

    def _spared(self, file: str, write: Callable[..., None], *arguments: Any) -> None:
        """Writes; what fails is told once, and not written any more."""
        if file in self._failed:
            return
        try:
            write(*arguments)
        except OSError as error:
            self._failed.add(file)
            logger.warning(f"{file}: {error.strerror or error}; the run goes on without it")

    def _evaluations(self) -> list[dict[str, Any]]:
        """Of all starts of the run."""
        if FILE_NAME in self._failed:
            return []
        return read_history(self._folder / FILE_NAME).evaluations

    def _files(self, more: Iterable[Path]) -> list[Fact]:
        command = f"clipfast report {self._folder}"
        return [*(("file", str(path)) for path in more), ("report", command)]


class Stopwatch:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        return elapsed
