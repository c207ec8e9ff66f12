"""The progress bar."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from clipfast.train.monitoring.records import StepRecord, window_of

_RECENT_STEPS = 20
_SECONDS_BETWEEN_UPDATES = 0.2


class TrainingBar(Progress):
    """Two lines, where the console is a terminal: how far the run is, and means of its last steps.

    Args:
        console: to draw on.
        epochs, steps_per_epoch: the bar's length.
        global_batch: samples of a step, of all ranks.
        done: steps that an earlier start has taken.
    """

    def __init__(
        self, console: Console, *, epochs: int, steps_per_epoch: int, global_batch: int, done: int
    ) -> None:
        self._status = Text()
        super().__init__(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps,"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
            expand=True,
            refresh_per_second=4,
            transient=True,
        )
        self._epochs, self._steps_per_epoch, self._global_batch = (
            epochs,
            steps_per_epoch,
            global_batch,
        )
        self._recent = deque[StepRecord](maxlen=_RECENT_STEPS)
        self._updated = 0.0
        self._bar = self.add_task(
            "", total=epochs * steps_per_epoch, completed=done, epoch=self._epoch(done)
        )

    def add(self, record: StepRecord, done: int) -> bool:
        """Takes note of a step; True if the bar is due to be drawn with it."""
        if self.disable:
            return False
        self._recent.append(record)
        last = done == self._epochs * self._steps_per_epoch
        return last or time.monotonic() - self._updated > _SECONDS_BETWEEN_UPDATES

    def show(self, done: int, memory: int) -> None:
        """Args:
        done: steps, over all starts.
        memory: bytes in use.
        """
        self._updated = time.monotonic()
        self._status = Text(status_words(self._recent, self._global_batch, memory), "dim")
        self.update(self._bar, completed=done, epoch=self._epoch(done - 1))

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield self._status

    def _epoch(self, step: int) -> str:
        return f"{min(step // self._steps_per_epoch + 1, self._epochs)} of {self._epochs}"


def status_words(records: Iterable[StepRecord], global_batch: int, memory: int) -> str:
    """What the line under the bar says of the last steps."""
    records = list(records)
    window, last = window_of(records), records[-1]
    loss = window.means().get("loss", last.loss)
    words = [
        f"loss {loss:.3f}",
        f"{len(records) * global_batch / window.batch_time:,.0f} samples/s",
        f"data wait {window.data_wait:.0%}",
        f"scale {last.logit_scale:.1f}",
        f"lr {last.lr:.1e}",
        gibibytes(memory),
    ]
    if window.skipped:
        words.append(f"{window.skipped} skipped")
    return "  ".join(words)


def gibibytes(memory: float) -> str:
    return f"{memory / 2**30:.2f} GiB"
