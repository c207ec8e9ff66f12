"""`clipfast train` that notes every step, and meets faults inside the steps that a test names."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clipfast.cli import main
from clipfast.train import loop
from clipfast.train.monitoring.monitor import Monitor


class Fault(NamedTuple):
    """Attributes:
    what: SIGKILL, SIGTERM, sleep or nan.
    rank: which meets it.
    steps: since this process's start.
    """

    what: str
    rank: int
    steps: Sequence[int]


def recorded_train(rank: int, flags: list[str], notes: Path, fault: Fault | None = None) -> None:
    """Trains and exits as the command does; ``notes-RANK`` has a line for every step."""
    take_step, note_step = loop.take_step, Monitor.step
    steps: list[list[int]] = []

    def step_with_fault(engine: Any, objective: Any, batch: Any, **options: Any) -> Any:
        steps.append(batch.numbers.tolist())
        if fault is not None and rank == fault.rank and len(steps) - 1 in fault.steps:
            engine = _meet(fault.what, engine)
        return take_step(engine, objective, batch, **options)

    def noted(self: Monitor, epoch: int, step: int, record: Any) -> None:
        line = {
            "at": [epoch, step],
            "loss": record.loss,
            "skipped": record.skipped,
            "samples": steps[-1],
        }
        with open(notes / f"notes-{rank}", "a") as file:
            file.write(json.dumps(line) + "\n")
        note_step(self, epoch, step, record)

    loop.take_step, Monitor.step = step_with_fault, noted
    sys.exit(main(["train", *flags]))


def _meet(what: str, engine: Any) -> Any:
    if what == "nan":
        return _NanFeatures(engine)
    if what == "sleep":
        time.sleep(1000)
    os.kill(os.getpid(), getattr(signal, what))
    return engine


class _NanFeatures:
    """The engine, but for features that are not finite."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def encode(self, batch: Any) -> Any:
        encoded = self._engine.encode(batch)
        return encoded._replace(image=encoded.image * float("nan"))


if __name__ == "__main__":  # by torchrun: the folder, the fault or null, the flags
    folder, given, *flags = sys.argv[1:]
    fault = json.loads(given)
    recorded_train(
        int(os.environ["RANK"]), flags, Path(folder), None if fault is None else Fault(*fault)
    )
