"""Threads that work through a long list, and a progress bar about them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from clipfast.data.loader import take_one_core

Item = TypeVar("Item")
Result = TypeVar("Result")


class Crew:
    """A pool of threads and a bar on stderr, which is there if that is a terminal.

    Args:
        what: the bar's description.
        total: what all calls of `advance` add up to.
        workers: threads.
        columns: right of the bar: what `total` counts.
    """

    def __init__(self, what: str, total: int, workers: int, *columns: ProgressColumn) -> None:
        self._workers = workers
        self._given_up = False
        self._pool = ThreadPoolExecutor(workers, "clipfast-shards", take_one_core)
        console = Console(stderr=True)
        left = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
        self._bar = Progress(
            *left, *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
        )
        self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> Crew:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._given_up = kind is not None
        self._pool.shutdown(cancel_futures=True)
        self._bar.stop()

    def advance(self, amount: int) -> None:
        """Moves the bar; in a thread of the pool whose results nobody wants any more, raises."""
        if self._given_up:
            raise _GivenUp
        self._bar.advance(self._task, amount)

    def in_order(
        self, work: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result]]:
        """Each item and ``work(item)``, in the items' order; a few are worked on ahead."""
        ahead = deque[tuple[Item, Future[Result]]]()
        for item in items:
            ahead.append((item, self._pool.submit(work, item)))
            if len(ahead) > 2 * self._workers:
                item, future = ahead.popleft()
                yield item, future.result()
        for item, future in ahead:
            yield item, future.result()


class _GivenUp(Exception):
    """Ends the work of a thread after another one's has failed."""
