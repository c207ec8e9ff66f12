"""One run of a trainer in a process of its own, and what its files and the system tell of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clipfast.errors import UserError

Progressed = Callable[[float], None]

_POLL_SECONDS = 0.2
_TAIL = 4  # last steps, whose data is there before they begin


class Trainer(NamedTuple):
    """Attributes:
    name: ours or theirs, as it is shown.
    words: of the command, before its flags.
    environment: what it is started under, besides the machine's.
    """

    name: str
    words: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()


OURS = Trainer("clipfast", ("-m", "clipfast.train"))
THEIRS = Trainer("open_clip_train", ("-m", "clipfast_bench.training.train_open_clip"))
THEIRS_ON_OUR_BATCHES = Trainer(THEIRS.name, (*THEIRS.words, "--our-batches"))


class Span(NamedTuple):
    """Which steps of a run of one epoch are timed.

    Attributes:
        steps: how many.
        every: steps between two that are logged, by which the clock is read. It divides `steps`;
            as many pass before the first timed one.
    """

    steps: int
    every: int

    @staticmethod
    def of(steps: int) -> Span:
        """For about so many timed steps."""
        every = max(1, steps // 4)
        return Span(steps // every * every, every)

    @property
    def all_steps(self) -> int:
        return self.every + self.steps + _TAIL


class Run(NamedTuple):
    """Attributes:
    losses: of the steps that were logged.
    step_seconds: of a timed step, waiting for data included; 0 where none was timed.
    whole_seconds: from the command to its end, start and checkpoint included.
    peak_bytes: the process's largest resident set, and what its workers held besides; 0 where
        steps were timed, as looking takes time.
    """

    losses: list[float]
    step_seconds: float
    whole_seconds: float
    peak_bytes: int


def run(
    trainer: Trainer, flags: Sequence[str], folder: Path, span: Span | None, progressed: Progressed
) -> Run:
    """Runs a trainer from shards to weights.

    Args:
        flags: of both trainers, with `--report-to tensorboard`, without --logs and --name.
        folder: new; for the run's files.
        span: what is timed; None times no step, and looks after memory.

    Raises:
        UserError: it fails.
    """
    folder.mkdir()
    command = [sys.executable, *trainer.words, *flags, "--logs", str(folder), "--name", "run"]
    began = time.perf_counter()
    with open(folder / "said", "w+b") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=said, env=os.environ | dict(trainer.environment)
        )
        try:
            peak = _watch(process, folder / "run" / "out.log", progressed, memory=span is None)
        except BaseException:
            process.kill()
            process.wait()
            raise
    whole = time.perf_counter() - began
    if process.returncode != 0:
        last = (folder / "said").read_text(errors="replace").strip().splitlines()[-1:]
        raise UserError(f"{trainer.name}: expected a run to its end; got: {'; '.join(last)}")
    losses, clock = _logged(folder / "run" / "tensorboard")
    seconds = 0.0
    if span is not None:
        seconds = (clock[span.every + span.steps] - clock[span.every]) / span.steps
    return Run(losses, seconds, whole, peak)


def _logged(tensorboard: Path) -> tuple[list[float], dict[int, float]]:
    """The losses, and the time at which each step wrote its own."""
    events = EventAccumulator(str(tensorboard))
    events.Reload()
    scalars = events.Scalars("train/loss")
    return [x.value for x in scalars], {x.step: x.wall_time for x in scalars}


def _watch(
    process: subprocess.Popen[bytes], log: Path, progressed: Progressed, *, memory: bool
) -> int:
    """Waits for the end; the peak of memory until then, if that is asked for."""
    own = workers = 0
    while True:
        try:
            process.wait(_POLL_SECONDS)
            return own + workers
        except subprocess.TimeoutExpired:
            if memory:
                own = max(own, _peak_of(process.pid))
                workers = max(workers, sum(map(_private_to, _children(process.pid))))
            progressed(_share_done(log))


def _share_done(log: Path) -> float:
    try:
        found = re.findall(r"Train Epoch: .*?\((\d+)%\)", log.read_text())
    except OSError:
        return 0.0
    return int(found[-1]) / 100 if found else 0.0


def _peak_of(pid: int) -> int:
    return _kib(Path(f"/proc/{pid}/status"), "VmHWM")


def _private_to(pid: int) -> int:
    """What it does not share with the process that it is a copy of."""
    return _kib(Path(f"/proc/{pid}/smaps_rollup"), "Private_Clean", "Private_Dirty")


def _kib(file: Path, *fields: str) -> int:
    """The sum of fields of one of Linux's tables, in bytes; 0 where there is none."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.split(":")[0] in fields)


def _children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(word) for task in tasks for word in (task / "children").read_text().split()]
    except OSError:
        return []
