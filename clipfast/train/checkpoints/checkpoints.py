"""What a run saves, and when."""

from __future__ import annotations

import argparse
import logging
import time
from typing import Any

from torch import Tensor

from clipfast.errors import UserError
from clipfast.ranks.agreement import by_main
from clipfast.ranks.world import World
from clipfast.train.checkpoints.epochs import Epochs
from clipfast.train.checkpoints.remote_sync import RemoteSync
from clipfast.train.checkpoints.run_folder import Position, RunFolder
from clipfast.train.checkpoints.states import States
from clipfast.train.checkpoints.writer import Writer
from clipfast.train.engines.engine import Engine

logger = logging.getLogger("clipfast.train")


class Checkpoints:
    """The states and the epochs' checkpoints of a run; ``--logs none`` saves neither.

    In each step all ranks tell each other, in one collective, whether theirs is `unfinished` and
    whether a save is `wanted` on it; where none is unfinished they `settle`. Every method is
    collective; a failed write is a UserError of `settle`, of the next save or of `finish`.

    Around the steps it is a context: it copies to ``--remote-sync`` from the first of them on, and
    at the end, or after a UserError, which all ranks have, it finishes.
    """

    def __init__(self, args: argparse.Namespace, folder: RunFolder, world: World) -> None:
        self.writer = Writer(world)
        self.states = States(folder.states, world, self.writer, keep=args.keep_states)
        self.epochs = Epochs(
            folder,
            world,
            self.writer,
            frequency=args.save_frequency,
            total=args.epochs,
            latest=args.save_most_recent,
            delete_previous=args.delete_previous_checkpoint,
            keep=args.keep_states,
        )
        self.saves = args.logs.lower() != "none"
        self.every_steps = args.save_every_steps
        self.every_seconds = 60 * args.save_every_minutes if world.is_main else 0
        self.world = world
        self._saved_at = time.monotonic()
        self._remote = RemoteSync.of(args, folder) if world.is_main else None

    def __enter__(self) -> Checkpoints:
        """Raises:
        UserError: the first copy to ``--remote-sync`` failed.
        """
        by_main(self.world, lambda: self._remote.start() if self._remote else None)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.finish()
        elif isinstance(error, UserError) or self.world.size == 1:
            try:
                self.finish()
            except UserError as another:
                logger.error(str(another))
        elif self._remote is not None:
            self._remote.stop()

    @property
    def unfinished(self) -> bool:
        """Whether this rank's files are still being written."""
        return self.writer.unfinished

    @property
    def wanted(self) -> bool:
        """Whether so many minutes have passed since the last state; rank 0's clock counts."""
        passed = time.monotonic() - self._saved_at
        return 0 < self.every_seconds <= passed

    def settle(self) -> None:
        """Makes what all ranks have written a checkpoint; nothing where none is written."""
        self.writer.settle()

    def due(self, global_step: int) -> bool:
        """Whether the number of steps taken asks for a state."""
        return self.every_steps > 0 and global_step % self.every_steps == 0

    def save_state(
        self, position: Position, global_step: int, engine: Engine, content: dict[str, Any]
    ) -> None:
        """See `States.save`."""
        if self.saves:
            self._saved_at = time.monotonic()
            self.states.save(position, global_step, engine, content)

    def after_epoch(
        self,
        epochs_done: int,
        global_step: int,
        engine: Engine,
        content: dict[str, Any],
        ema_weights: dict[str, Tensor] | None = None,
    ) -> None:
        """See `Epochs.save`."""
        if self.saves:
            self.epochs.save(epochs_done, global_step, engine, content, ema_weights)

    def finish(self) -> None:
        """Waits until all is written, here and at ``--remote-sync``; once.

        Raises:
            UserError: something could not be written.
        """
        self.writer.finish()
        remote, self._remote = self._remote, None
        by_main(self.world, lambda: remote.finish() if remote else None)
