"""The files of one run: ``logs/NAME/{out.log, params.txt, quarantine.jsonl, checkpoints/, state/,
tensorboard/}``.

``checkpoints/`` has what open_clip's trainer reads too: ``epoch_N.pt`` and ``epoch_latest.pt``.
``state/step_N/`` has all that going on inside an epoch needs, ``state/epoch_N/`` what
``epoch_N.pt`` has no place for, and its checksum. ``ema/`` has the averaged weights of a run that
keeps them, in open_clip's form. What ends in ``.partial`` is being written, or never was finished.
"""

from __future__ import annotations

import argparse
import re
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from clipfast.errors import UserError

PARTIAL = ".partial"
LATEST = "epoch_latest"
EPOCH_FILE = re.compile(r"epoch_(\d+)\.pt")
_STEP_FOLDER = re.compile(r"step_(\d+)")


class Position(NamedTuple):
    """How far a run has come: `step` steps of `epoch` are done."""

    epoch: int
    step: int


class RunFolder:
    """Args:
    root: the folder of all runs.
    name: this run's folder.
    resume: go on in a folder that exists; otherwise one that holds a run is refused.
    log_name: of the log file.

    Raises:
        UserError: the folder holds a run already.
    """

    def __init__(self, root: str, name: str, *, resume: bool, log_name: str = "out.log") -> None:
        self.path = Path(root) / name
        self.log = self.path / log_name
        if self.log.exists() and not resume:
            raise UserError(
                f"--name: {self.path} already holds a run; expected a new name, or --resume latest "
                "to go on with it"
            )
        self.checkpoints = self.path / "checkpoints"
        self.states = self.path / "state"
        self.ema = self.path / "ema"
        self.tensorboard = self.path / "tensorboard"

    @property
    def quarantine(self) -> Path:
        return self.quarantine_of(0)

    def quarantine_of(self, rank: int) -> Path:
        """The list of what this rank could not use; two that append to one file would mix lines."""
        return self.path / (f"quarantine-{rank}.jsonl" if rank else "quarantine.jsonl")

    def create(self, args: argparse.Namespace) -> None:
        """Makes the folders and writes params.txt.

        Raises:
            OSError: they cannot be written.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        lines = [f"{name}: {value}\n" for name, value in sorted(vars(args).items())]
        (self.path / "params.txt").write_text("".join(lines))


def numbered(folder: Path, pattern: re.Pattern[str]) -> list[tuple[int, Path]]:
    """What in the folder has a name of this pattern, by the number in its group, in that order."""
    matches = [(pattern.fullmatch(path.name), path) for path in folder.glob("*")]
    return sorted((int(match[1]), path) for match, path in matches if match)


def steps_in(states: Path) -> list[tuple[int, Path]]:
    """The ``step_N`` of a run, by N."""
    return numbered(states, _STEP_FOLDER)


def epochs_in(folder: Path) -> list[tuple[int, Path]]:
    """The ``epoch_N.pt`` in a folder, by N."""
    return numbered(folder, EPOCH_FILE)


def default_name(args: argparse.Namespace) -> str:
    """open_clip's: time and the settings that most tell runs apart."""
    model = Path(args.model).stem if args.model.endswith(".json") else args.model
    time = datetime.now().strftime("%Y_%m_%d-%H_%M_%S")
    settings = f"lr_{args.lr}-b_{args.batch_size}-j_{args.workers}-p_{args.precision}"
    return f"{time}-model_{model.replace('/', '-')}-{settings}"
