"""Things that are opened when they are needed, few of them at once."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from clipfast.data.sources.samples import UnusableError

T = TypeVar("T")

# Seconds in which what could not be opened is not tried again.
_PAUSE = 30.0


class Kept(Generic[T]):
    """The things used last, by number; safe from several threads.

    One that leaves here lives on for the threads that have it. Threads that want the same one wait
    for it together, without keeping others from theirs.

    Args:
        make: gives a thing, or raises.
        most: how many are kept.
        pause: seconds until one that was unusable is tried again.
    """

    def __init__(self, make: Callable[[int], T], most: int, pause: float = _PAUSE) -> None:
        self._make, self._most, self._pause = make, most, pause
        self._things = OrderedDict[int, T]()
        self._failures = dict[int, _Failure]()
        self._lock = threading.Lock()
        self._making = [threading.Lock() for _ in range(64)]

    def __len__(self) -> int:
        return len(self._things)

    def get(self, number: int) -> T:
        """Raises:
        UnusableError: it is so, or was a short while ago.
        """
        if (thing := self._find(number)) is not None:
            return thing
        with self._making[number % len(self._making)]:
            # Another thread may have made it meanwhile.
            if (thing := self._find(number)) is not None:
                return thing
            try:
                thing = self._make(number)
            except UnusableError as error:
                self.fail(number, str(error))
                raise
            with self._lock:
                self._things[number] = thing
                left = [self._things.popitem(last=False)] if len(self._things) > self._most else []
        del left  # closed here, where nobody waits for the lock
        return thing

    def fail(self, number: int, reason: str) -> None:
        """Gives a thing up for a while."""
        with self._lock:
            self._failures[number] = _Failure(reason, time.monotonic() + self._pause)
            given_up = self._things.pop(number, None)
        del given_up

    def _find(self, number: int) -> T | None:
        with self._lock:
            if number in self._things:
                self._things.move_to_end(number)
                return self._things[number]
            failure = self._failures.get(number)
            if failure is None:
                return None
            if time.monotonic() < failure.until:
                raise UnusableError(failure.reason)
            del self._failures[number]
            return None


class _Failure(NamedTuple):
    reason: str
    until: float
