"""The files of one run: ``logs/NAME/{out.log, params.txt, quarantine.jsonl, checkpoints/, state/,
tensorboard/}``.

``checkpoints/epoch_N.pt`` are open_clip's form. ``state/step_N/`` holds what resuming in the middle
of an epoch needs; only the newest is kept.
"""

from __future__ import annotations

import argparse
import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from clipfast.errors import UserError
from clipfast.weights.checkpoint import read_checkpoint, save_checkpoint


class Position(NamedTuple):
    """How far a run has come: `step` steps of `epoch` are done."""

    epoch: int
    step: int


class RunFolder:
    """Args:
    root: the folder of all runs.
    name: this run's folder.
    resume: go on in a folder that exists; otherwise one that holds a run is refused.

    Raises:
        UserError: the folder holds a run already.
    """

    def __init__(self, root: str, name: str, *, resume: bool) -> None:
        self.path = Path(root) / name
        self.log = self.path / "out.log"
        if self.log.exists() and not resume:
            raise UserError(
                f"--name: {self.path} already holds a run; expected a new name, or --resume latest "
                "to go on with it"
            )
        self.quarantine = self.path / "quarantine.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.states = self.path / "state"
        self.tensorboard = self.path / "tensorboard"

    def create(self, args: argparse.Namespace) -> None:
        """Makes the folders and writes params.txt.

        Raises:
            OSError: they cannot be written.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        lines = [f"{name}: {value}\n" for name, value in sorted(vars(args).items())]
        (self.path / "params.txt").write_text("".join(lines))

    def save_epoch(self, epochs_done: int, state: dict[str, Any], file_name: str) -> None:
        content = {"epoch": epochs_done, "name": self.path.name} | state
        save_checkpoint(self.checkpoints / file_name, content)

    def save_state(self, global_step: int, position: Position, content: dict[str, Any]) -> None:
        """Writes ``state/step_N``, whole or not at all, then drops older ones."""
        self.states.mkdir(exist_ok=True)
        target = self.states / f"step_{global_step}"
        partial = self.states / f"step_{global_step}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            save_checkpoint(partial / "state.pt", content | {"position": tuple(position)})
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        for older in self._numbered(self.states, r"step_(\d+)"):
            if older != target:
                shutil.rmtree(older)

    def newest(self) -> Path:
        """The file from which ``--resume latest`` goes on: the newest state, or the last epoch's
        checkpoint if that is further.

        Raises:
            UserError: there is neither.
        """
        states = [s / "state.pt" for s in self._numbered(self.states, r"step_(\d+)")]
        epochs = self._numbered(self.checkpoints, r"epoch_(\d+)\.pt")
        latest = self.checkpoints / "epoch_latest.pt"
        found = [*states[-1:], *epochs[-1:], *([latest] if latest.exists() else [])]
        if not found:
            raise UserError(f"--resume latest: no checkpoint in {self.path}")
        return max(found, key=lambda path: position_of(read_checkpoint(path)))

    @staticmethod
    def _numbered(folder: Path, pattern: str) -> list[Path]:
        matches = [(re.fullmatch(pattern, p.name), p) for p in folder.glob("*")]
        return [p for _, p in sorted((int(m[1]), p) for m, p in matches if m)]


def position_of(checkpoint: dict[str, Any]) -> Position:
    """Where a state, or a checkpoint in open_clip's form, was saved."""
    if "position" in checkpoint:
        return Position(*checkpoint["position"])
    return Position(checkpoint.get("epoch", 0), 0)


def default_name(args: argparse.Namespace) -> str:
    """open_clip's: time and the settings that most tell runs apart."""
    model = Path(args.model).stem if args.model.endswith(".json") else args.model
    time = datetime.now().strftime("%Y_%m_%d-%H_%M_%S")
    settings = f"lr_{args.lr}-b_{args.batch_size}-j_{args.workers}-p_{args.precision}"
    return f"{time}-model_{model.replace('/', '-')}-{settings}"
