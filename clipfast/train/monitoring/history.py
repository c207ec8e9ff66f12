"""``logs/NAME/history.jsonl``: what a run measured, for programs to read.

One JSON object a line, told apart by "kind":

- ``start``: the run begins, or goes on, at a global step; when, where, and what it announced.
- ``point``: means over the steps since the point before. Of a run of up to 2,000 steps each step is
  one; of a longer one about 2,000 are written, and each epoch's first and last step.
- ``evaluation``: metrics after an epoch.
- ``end``: how the run ended; one that was killed has none.

A run that goes on appends. What it does again may have been written before it was killed: of two
lines for one step the later holds, and `read_history` drops the earlier.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipfast.train.monitoring.records import StepRecord, Window, finite

FILE_NAME = "history.jsonl"

_POINTS = 2_000
_SECONDS_BETWEEN_WRITES = 10.0


class History:
    """Args:
    path: appended to.
    steps_per_epoch: steps.
    total_steps: of the whole run; together they tell which steps are points.
    global_batch: samples of a step, of all ranks.
    """

    def __init__(
        self, path: Path, *, steps_per_epoch: int, total_steps: int, global_batch: int
    ) -> None:
        self.steps_per_epoch, self.global_batch = steps_per_epoch, global_batch
        self._stride = max(1, -(-total_steps // _POINTS))
        self._window = Window()
        self._path = path
        self._lines = [""] if _is_cut(path) else []
        self._written = time.monotonic()

    def start(self, global_step: int, **facts: Any) -> None:
        self._add("start", step=global_step, time=time.time(), **facts)
        self.flush()

    def step(self, global_step: int, record: StepRecord) -> bool:
        """Takes note of a step; True if `point` is to follow."""
        self._window.add(record)
        in_epoch = global_step % self.steps_per_epoch
        return (
            global_step % self._stride == 0 or in_epoch == 0 or in_epoch == self.steps_per_epoch - 1
        )

    def point(self, global_step: int, record: StepRecord, memory: int) -> None:
        """Writes the means since the last one.

        Args:
            record: of this step.
            memory: bytes.
        """
        window = self._window
        self._add(
            "point",
            step=global_step,
            epoch=global_step // self.steps_per_epoch,
            steps=window.steps,
            **{name: finite(mean) for name, mean in window.means().items()},
            lr=record.lr,
            scale=finite(record.logit_scale),
            samples_per_second=window.steps * self.global_batch / window.batch_time,
            data_wait=window.data_wait,
            seconds=window.batch_time,
            memory=memory,
            skipped=window.skipped,
        )
        window.clear()
        if time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self.flush()

    def evaluation(self, epochs_done: int, global_step: int, metrics: Mapping[str, float]) -> None:
        finite_metrics = {name: finite(value) for name, value in metrics.items()}
        self._add("evaluation", step=global_step, epochs=epochs_done, metrics=finite_metrics)
        self.flush()

    def end(self, global_step: int, outcome: str, **facts: Any) -> None:
        """Args:
        outcome: "done", or the sentence that ended the run.
        """
        self._add("end", step=global_step, time=time.time(), outcome=outcome, **facts)
        self.flush()

    def flush(self) -> None:
        """Writes what waits.

        Raises:
            OSError: it cannot be written.
        """
        with open(self._path, "a") as file:
            file.write("".join(f"{line}\n" for line in self._lines))
        self._lines.clear()
        self._written = time.monotonic()

    def _add(self, kind: str, **values: Any) -> None:
        self._lines.append(json.dumps({"kind": kind} | values, ensure_ascii=False))


@dataclass
class Recorded:
    """A history read back, each step once.

    Attributes:
        starts, points, evaluations: in the order of their steps.
        end: of the last start; None if it was killed, or goes on still.
    """

    starts: list[dict[str, Any]] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] | None = None


def read_history(path: Path) -> Recorded:
    """Reads what `History` wrote; a line that a crash cut is passed over.

    Raises:
        OSError: it cannot be read.
    """
    found = Recorded()
    for line in _objects(path.read_text(errors="replace").splitlines()):
        kind, step = line.get("kind"), line.get("step", 0)
        if kind == "start":
            found.starts.append(line)
            found.points = [point for point in found.points if point["step"] < step]
            found.evaluations = [e for e in found.evaluations if e["step"] <= step]
            found.end = None
        elif kind == "point":
            found.points.append(line)
        elif kind == "evaluation":
            same = [e for e in found.evaluations if e["epochs"] == line["epochs"]]
            for earlier in same:
                found.evaluations.remove(earlier)
            found.evaluations.append(line)
        elif kind == "end":
            found.end = line
    return found


def _is_cut(path: Path) -> bool:
    """Whether a crash left half a line."""
    if not path.exists() or not path.stat().st_size:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _objects(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                yield value
