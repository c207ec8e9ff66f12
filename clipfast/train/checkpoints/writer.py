"""Writing while training goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from clipfast.errors import UserError
from clipfast.ranks.agreement import by_main, refuse, sentence_of
from clipfast.ranks.world import World
from clipfast.train.checkpoints.manifest import Files

logger = logging.getLogger("clipfast.train")


class _Writing(NamedTuple):
    what: str
    future: Future[Files]
    commit: Callable[[Files], None]
    undo: Callable[[], None]


class Writer:
    """One checkpoint at a time, written by a thread on each rank.

    All ranks `start` one, and go on with their steps. In each step they tell each other whether
    theirs is `unfinished`; once none is, all `settle`: rank 0 then makes the files a checkpoint. An
    error of one rank is an error of all there.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._threads = ThreadPoolExecutor(1, "clipfast-checkpoint")
        self._writing: _Writing | None = None

    @property
    def unfinished(self) -> bool:
        """Whether this rank's files are still being written."""
        return self._writing is not None and not self._writing.future.done()

    def start(
        self,
        what: str,
        write: Callable[[], Files],
        commit: Callable[[Files], None],
        undo: Callable[[], None],
    ) -> None:
        """Collective, after `finish`.

        Args:
            what: names it in errors.
            write: writes this rank's files, in a thread, and gives their sums.
            commit: called on rank 0 with all ranks' files, when they are there.
            undo: called on rank 0 when they are not to be.
        """
        assert self._writing is None
        self._writing = _Writing(what, self._threads.submit(write), commit, undo)

    def settle(self) -> None:
        """Collective, once no rank is `unfinished`.

        Raises:
            UserError: a rank could not write, or rank 0 not commit.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        error = writing.future.exception()
        if error is not None and not isinstance(error, OSError):
            logger.error(f"{writing.what}: the writing thread failed", exc_info=error)
        files = {} if error else writing.future.result()
        outcomes = self.world.all((files, _sentence(error)))
        failures = [
            f"rank {rank}: {failure}" if self.world.size > 1 else failure
            for rank, (_, failure) in enumerate(outcomes)
            if failure is not None
        ]
        if failures:
            if self.world.is_main:
                writing.undo()
            refuse(self.world, _refused(writing.what, failures[0]))
        try:
            by_main(self.world, lambda: writing.commit(_merged([f for f, _ in outcomes])))
        except UserError as uncommitted:
            refuse(self.world, _refused(writing.what, str(uncommitted)))

    def finish(self) -> None:
        """Waits for what is being written, and settles it. Collective.

        Raises:
            UserError: as `settle`.
        """
        if self._writing is not None:
            wait([self._writing.future])
            self.settle()


def _refused(what: str, failure: str) -> str:
    return f"{what}: expected to write it; got: {failure}; the checkpoints before it stand"


def _sentence(error: BaseException | None) -> str | None:
    if error is None:
        return None
    if isinstance(error, OSError):
        return sentence_of(error)
    return " ".join(str(error).split()) or type(error).__name__


def _merged(parts: list[Files]) -> Files:
    merged: Files = {}
    for files in parts:
        assert not merged.keys() & files.keys(), "two ranks wrote files of one name"
        merged |= files
    return merged
