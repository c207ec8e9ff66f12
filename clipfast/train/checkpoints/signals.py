"""What the system asks of a run by signals: to stop, or to save."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

_STOP = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Turns the first SIGINT or SIGTERM into a request that the loop honours between two steps; a
    second one ends the process as usual. SIGUSR1 asks for a checkpoint.

    Attributes:
        requested: the number of the signal that asks to stop; 0 without one.
    """

    def __init__(self) -> None:
        self.requested = 0
        self._save = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {s: signal.signal(s, self._stop) for s in _STOP}
            self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._ask_to_save)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore(self._before)

    @property
    def save_requested(self) -> bool:
        """Whether a checkpoint was asked for since this was last read."""
        requested, self._save = self._save, False
        return requested

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.requested = number
        self._restore({s: self._before[s] for s in _STOP})

    def _ask_to_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True

    def _restore(self, handlers: dict[int, Any]) -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)
