"""What the person at the terminal and the log files see of a run."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger("clipfast.train")


@dataclass
class StepRecord:
    """What one step measured; times in seconds."""

    loss: float
    logit_scale: float
    lr: float
    data_time: float
    batch_time: float


@dataclass
class _Window:
    """Means since the last log line."""

    steps: int = 0
    data_time: float = 0.0
    batch_time: float = 0.0

    def add(self, record: StepRecord) -> None:
        self.steps += 1
        self.data_time += record.data_time
        self.batch_time += record.batch_time


@dataclass
class Monitor:
    """Progress bar, out.log in open_clip's line format, TensorBoard, and the history of losses.

    Attributes:
        log: file that log lines are appended to.
        tensorboard: folder for TensorBoard's events, or None.
        batch_size: samples per step.
        steps_per_epoch: with `epochs`, the length of the bar.
        samples: in one epoch, as the log line counts them.
        log_every: steps between log lines.
    """

    log: Path
    tensorboard: Path | None
    batch_size: int
    steps_per_epoch: int
    epochs: int
    samples: int
    log_every: int
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not sys.stderr.isatty(),
        )
        self._writer = SummaryWriter(str(self.tensorboard)) if self.tensorboard else None
        self._handlers = [logging.FileHandler(self.log), _ConsoleHandler(self._console)]
        form = logging.Formatter("%(asctime)s | %(levelname)s | %(message)s", "%Y-%m-%d,%H:%M:%S")
        for handler in self._handlers:
            handler.setFormatter(form)
        self._window, self._total_time = _Window(), 0.0
        self._loss_sum, self._loss_count, self._epoch = 0.0, 0, -1

    def __enter__(self) -> Monitor:
        logger.setLevel(logging.INFO)
        logger.propagate = False
        for handler in self._handlers:
            logger.addHandler(handler)
        self._progress.start()
        self._task = self._progress.add_task(
            "training", total=self.epochs * self.steps_per_epoch, status=""
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        for handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()
        if self._writer is not None:
            self._writer.close()

    @property
    def samples_per_second(self) -> float:
        """Over all steps so far, waiting for data included; 0 before the first."""
        return len(self.losses) * self.batch_size / self._total_time if self.losses else 0.0

    def step(self, epoch: int, step: int, record: StepRecord) -> None:
        """Takes note of a finished step; `step` counts from 0 in its epoch."""
        self.losses.append(record.loss)
        self._window.add(record)
        self._total_time += record.batch_time
        done, rate = epoch * self.steps_per_epoch + step + 1, self.batch_size / record.batch_time
        self._progress.update(
            self._task,
            completed=done,
            status=f"loss {record.loss:.3f}  {rate:,.0f} samples/s  "
            f"data {record.data_time / record.batch_time:.0%}  lr {record.lr:.1e}",
        )
        if step % self.log_every == 0 or step + 1 == self.steps_per_epoch:
            self._write_line(epoch, step, record)
            self._window = _Window()

    def _write_line(self, epoch: int, step: int, record: StepRecord) -> None:
        if epoch != self._epoch:
            self._epoch, self._loss_sum, self._loss_count = epoch, 0.0, 0
        self._loss_sum += record.loss
        self._loss_count += 1
        mean_loss = self._loss_sum / self._loss_count
        done, window = (step + 1) * self.batch_size, self._window
        rate = self.batch_size / record.batch_time
        loss = f"{record.loss:#.5g} ({mean_loss:#.5g})"
        logger.info(
            f"Train Epoch: {epoch} [{done:>{len(str(self.samples))}}/{self.samples} "
            f"({100 * (step + 1) / self.steps_per_epoch:.0f}%)] "
            f"Data (t): {window.data_time / window.steps:.3f} "
            f"Batch (t): {window.batch_time / window.steps:.3f}, {rate:#g}/s, {rate:#g}/s/gpu "
            f"LR: {record.lr:5f} Logit Scale: {record.logit_scale:.3f} "
            f"Contrastive_loss: {loss} Loss: {loss}"
        )
        if self._writer is not None:
            values = {
                "data_time": record.data_time,
                "batch_time": record.batch_time,
                "samples_per_second": rate,
                "samples_per_second_per_gpu": rate,
                "scale": record.logit_scale,
                "lr": record.lr,
                "contrastive_loss": record.loss,
                "loss": record.loss,
            }
            for name, value in values.items():
                self._writer.add_scalar(f"train/{name}", value, epoch * self.steps_per_epoch + step)


class _ConsoleHandler(logging.Handler):
    """Prints log lines above the progress bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), markup=False, soft_wrap=True)


class Stopwatch:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        return elapsed
