"""How much of the time that the reader grants each case may take."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from clipfast.errors import UserError

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_FORM = re.compile(r"(\d+(?:\.\d+)?)([smh]?)")

OVER = "the budget had ended before its turn"
# What a case may take of its fair share if it must: most take less.
_STRETCH = 4.0
# How far beyond the budget the first case of every operation may go on a busy machine.
_GRACE = 0.15
# What such a case may take of the budget however little is left.
_MUST = 0.2
# What the end of a run takes: the machine's rates and description, and the table.
_ENDING, _ENDING_SHARE = 3.0, 0.1
# Shares of the whole for work that is no timing.
_COMPILING, _MEMORY = 0.25, 0.15


def parse_budget(text: str) -> float:
    """Seconds of ``30s``, ``2m``, ``1.5h`` or ``90``.

    Raises:
        UserError: another form, or no time at all.
    """
    found = _FORM.fullmatch(text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < seconds < math.inf:
        raise UserError(f"--budget: expected a time such as 30s, 2m or 1h; got {text!r}")
    return seconds


class Allotment(NamedTuple):
    """Of one case, in seconds from now.

    Attributes:
        target: what its rounds should fill.
        most: what its fewest rounds may take; a case that needs more is left out.
    """

    target: float
    most: float


class Budget:
    """The time of a whole run, shared out case by case; what one leaves, the others have.

    Args:
        seconds: from `began`; None is without end.
        now: a clock.
        began: by that clock; None is now.
    """

    def __init__(
        self,
        seconds: float | None,
        now: Callable[[], float] = time.perf_counter,
        began: float | None = None,
    ) -> None:
        self.seconds, self.now = seconds, now
        self.began = now() if began is None else began
        self._spent = {"compiling": 0.0, "memory": 0.0}
        self._round_seconds: dict[str, tuple[float, float]] = {}

    @property
    def remaining(self) -> float:
        if self.seconds is None:
            return math.inf
        return max(0.0, self._end() - self.now())

    @property
    def is_over(self) -> bool:
        """With its grace."""
        return self.seconds is not None and self.now() > self._end(_GRACE)

    def _end(self, grace: float = 0.0) -> float:
        """Of the cases, by the clock."""
        assert self.seconds is not None
        ending = min(_ENDING, _ENDING_SHARE * self.seconds)
        return self.began + (1 + grace) * self.seconds - ending

    def allot(
        self, weights: Sequence[float], *, most: float = 0.0, must: bool = False
    ) -> Allotment:
        """For the first of the cases that are still to come.

        Args:
            weights: of all of them.
            most: the share of what remains that it may take in any case.
            must: rather too long than left out, within a grace of 15 % of the budget.
        """
        if self.seconds is None:
            return Allotment(math.inf, math.inf)
        remaining = self.remaining
        target = remaining * weights[0] / sum(weights)
        if must:
            left = max(0.0, self._end(_GRACE) - self.now())
            return Allotment(target, max(most * left, min(left, _MUST * self.seconds)))
        return Allotment(target, min(max(_STRETCH * target, most * remaining), remaining))

    def learn(self, kind: str, work: float, round_seconds: float) -> None:
        """What a round of a case took, for guesses at larger ones of its kind."""
        self._round_seconds[kind] = work, round_seconds

    def guess(self, kind: str, work: float) -> float:
        """Seconds of a round; 0 where nothing is known."""
        known_work, seconds = self._round_seconds.get(kind, (1.0, 0.0))
        return seconds * work / known_work

    def grants(self, what: str, seconds: float) -> bool:
        """Whether so much may go into "compiling" or "memory"; it counts as spent then."""
        if self.seconds is None:
            return True
        share = {"compiling": _COMPILING, "memory": _MEMORY}[what] * self.seconds
        granted = self._spent[what] + seconds <= share and seconds <= self.remaining
        if granted:
            self._spent[what] += seconds
        return granted
