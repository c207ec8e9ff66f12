"""One rank that stands still holds all others up, in collectives that say nothing: this names it
and ends the run.

Every rank leaves word of its phase at the processes' store, from a thread of its own. One that has
been in a phase for long reads the others' and tells who is behind.
"""

from __future__ import annotations

import faulthandler
import itertools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import clipfast_kernels.distributed
import torch.distributed as dist

from clipfast.ranks.world import World

logger = logging.getLogger("clipfast.train")

# How many times as long as others a slow phase may last.
SLOW = 6
# Of a process that the watchdog ends: the run may well go on if it is started again.
EXIT_CODE = os.EX_TEMPFAIL

_LONGEST_TICK = 1.0  # seconds between two reports
_TICKS_OF_SILENCE = 8  # that tell a process which is gone, once a connection broke
# Where calls to other ranks are.
_CALLS = (os.path.dirname(dist.__file__), clipfast_kernels.distributed.__file__)


class Report(NamedTuple):
    """What a rank says of itself.

    Attributes:
        beat: counts its reports.
        turn: counts its phases, which are the same on all ranks.
        phase, step: what it does; no step for what belongs to none.
        age: seconds since the phase began.
        slow: the phase may last SLOW times as long as others.
        waits: it is in a call that other ranks must join.
        ended: None while it runs, "" when it is done, else why it ended.
    """

    beat: int = 0
    turn: int = 0
    phase: str = "the start"
    step: int | None = None
    age: float = 0.0
    slow: bool = True
    waits: bool = False
    ended: str | None = None

    @property
    def place(self) -> str:
        return self.phase if self.step is None else f"{self.phase} of step {self.step}"


class Seen(NamedTuple):
    """A rank's last report, and for how many seconds no other has come."""

    report: Report
    silence: float


def stalled(ranks: Mapping[int, Seen], timeout: float) -> str | None:
    """Who holds the run up, in a sentence; None where all may still be well.

    All others wait for the ranks that are the fewest phases on. Among equals it is for those that
    do not report any more, being stopped, dead or cut off, or else that do not wait themselves.

    Args:
        ranks: those that still run.
        timeout: seconds that a phase may last, if it is not slow.
    """
    if not ranks:
        return None
    least = min(seen.report.turn for seen in ranks.values())
    behind = {rank: seen for rank, seen in ranks.items() if seen.report.turn == least}
    silent = {rank: seen for rank, seen in behind.items() if seen.silence > timeout / 3}
    busy = {rank: seen for rank, seen in behind.items() if not seen.report.waits}
    named = silent or busy or behind
    report, silence = max(named.values(), key=lambda seen: seen.report.age + seen.silence)
    limit = timeout * (SLOW if report.slow else 1)
    if report.age + silence <= limit:
        return None
    if silent:
        what = f"not reported for {silence:.0f} s, last in {report.place}"
    else:
        what = f"been in {report.place} for {report.age + silence:.0f} s"
    return f"{_have(named, len(ranks))} {what}; expected at most {limit:g} s (--rank-timeout)"


def _have(ranks: Iterable[int], of: int) -> str:
    names = [str(rank) for rank in ranks]
    if len(names) == 1:
        return f"rank {names[0]} has"
    if len(names) == of:
        return f"all {of} ranks have"
    return f"ranks {', '.join(names[:8])}{', …' if len(names) > 8 else ''} have"


class Watchdog:
    """Ends this process with a sentence and EXIT_CODE when a rank stands still for longer than the
    time-out, or is gone. A context; it does nothing for a process alone.

    Args:
        world: the ranks.
        timeout: seconds that a phase may last.

    Attributes:
        stacks: a folder where a rank that ends so leaves what each of its threads was doing.
    """

    def __init__(self, world: World, timeout: float) -> None:
        self.world, self.timeout = world, timeout
        self.stacks: Path | None = None
        self._phase = _Phase(0, "the start", None, True, time.monotonic())
        self._tick = min(_LONGEST_TICK, timeout / 20)
        self._broken = False  # a connection
        self._ending = threading.Lock()
        self._board = _Board(world, self._tick, lambda: self._phase)

    def phase(self, name: str, step: int | None = None, *, slow: bool = False) -> None:
        """Begins a phase. All ranks go through the same ones.

        Args:
            name: what is done, to be read as "rank 1 has been in NAME of step 3".
            slow: compiling, saving or evaluating: it may last SLOW times as long.
        """
        self._phase = _Phase(self._phase.turn + 1, name, step, slow, time.monotonic())

    def __enter__(self) -> Watchdog:
        if self.world.store is not None:
            self._board.start()
            threading.Thread(target=self._watch, name="clipfast-watchdog", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.world.store is None:
            return
        if error is not None and _is_of_a_connection(error):
            gone = self._who_is_gone()
            if gone is not None:
                self._end(gone)
        why = "" if kind is None else f"{kind.__name__}: {error}"
        place = self._phase.report(0).place
        self._board.close(f"rank {self.world.rank} ended in {place}: {why}" if why else "")

    def _watch(self) -> None:
        while not self._board.closing.wait(self._tick):
            late = self._phase.report(0).age > self.timeout / 2
            self._board.of_all = late or self._broken
            sentence = self._verdict() if late else None
            if sentence is not None:
                self._end(sentence)

    def _verdict(self) -> str | None:
        ranks, unanswered = self._board.seen()
        if unanswered > self.timeout / 3:
            # Nothing is known of any rank, and the store is rank 0's, or that of who started it. It
            # answers however busy its process is, so that no phase excuses it.
            report = ranks[0].report._replace(age=0, slow=False)
            return stalled({0: Seen(report, unanswered)}, self.timeout)
        if len(ranks) < self.world.size:
            return None
        return _told(ranks) or stalled(_running(ranks), self.timeout)

    def _who_is_gone(self) -> str | None:
        """Told by the ranks that still report; None where all do."""
        self._broken = True
        for _ in range(2 * _TICKS_OF_SILENCE):
            time.sleep(self._tick)
            ranks, _ = self._board.seen()
            if told := _told(ranks):
                return told
            if not self._board.is_alive():
                return f"rank 0 is gone, last in {ranks[0].report.place}"
        limit = _TICKS_OF_SILENCE * self._tick
        gone = [rank for rank, seen in _running(ranks).items() if seen.silence > limit]
        if not gone:
            return None
        return f"rank {gone[0]} is gone, last in {ranks[gone[0]].report.place}"

    def _end(self, sentence: str) -> None:
        """Ends the process at once: its main thread may never come back from where it is."""
        self._ending.acquire()  # for good: while one thread ends the process no other does
        try:
            if self.world.is_main:
                logger.error(sentence)
            else:
                print(f"clipfast train: {sentence}", file=sys.stderr, flush=True)
            if self.stacks is not None:
                with open(self.stacks / f"stacks-{self.world.rank}.txt", "w") as file:
                    faulthandler.dump_traceback(file)
            self._board.close(sentence)
        finally:
            os._exit(EXIT_CODE)


class _Phase(NamedTuple):
    turn: int
    name: str
    step: int | None
    slow: bool
    since: float

    def report(self, beat: int, ended: str | None = None) -> Report:
        age = time.monotonic() - self.since
        return Report(beat, self.turn, self.name, self.step, age, self.slow, _waits(), ended)


class _Board(threading.Thread):
    """Says at every tick where this rank is, and hears where others are: all of them if asked,
    else rank 0, which may take the store along when it goes.

    It is a thread of its own because a call to a store that does not answer never returns.

    Attributes:
        of_all: whether all ranks' reports are wanted.
        closing: set when this rank's last word is to be said.
    """

    def __init__(self, world: World, tick: float, phase: Callable[[], _Phase]) -> None:
        super().__init__(name="clipfast-reports", daemon=True)
        self.world, self.tick, self.phase = world, tick, phase
        self.of_all, self.closing = False, threading.Event()
        self._last_word: str | None = None
        self._heard: dict[int, tuple[Report, float]] = {0: (Report(), time.monotonic())}
        self._answered = time.monotonic()

    def run(self) -> None:
        assert self.world.store is not None
        store = self.world.store.clone()
        for beat in itertools.count(1):
            last = self.closing.wait(self.tick)
            try:
                report = self.phase().report(beat, self._last_word)
                store.set(str(self.world.rank), json.dumps(report))
                self._hear(store)
            except (dist.DistError, RuntimeError):
                return  # the store is gone: how long ago it answered tells
            if last:
                return

    def seen(self) -> tuple[dict[int, Seen], float]:
        """Every rank heard of, and for how many seconds the store has not answered."""
        now, heard = time.monotonic(), self._heard
        return {r: Seen(report, now - t) for r, (report, t) in heard.items()}, now - self._answered

    def close(self, last_word: str) -> None:
        """Says why this rank ends, "" where it is done, and gives the others time to hear it."""
        self._last_word = last_word
        self.closing.set()
        self.join(_TICKS_OF_SILENCE * self.tick)
        if last_word and self.world.is_main:  # the store may end with this process
            time.sleep(4 * self.tick)

    def _hear(self, store: dist.Store) -> None:
        ranks = range(self.world.size) if self.of_all else range(1)
        there = [rank for rank in ranks if store.check([str(rank)])]
        texts = store.multi_get([str(rank) for rank in there]) if there else []
        now = time.monotonic()
        heard = {rank: self._heard.get(rank, (Report(), now)) for rank in ranks}
        for rank, text in zip(there, texts, strict=True):
            report = Report(*json.loads(text))
            if report.beat != heard[rank][0].beat:
                heard[rank] = (report, now)
        self._heard, self._answered = heard, now


def _waits() -> bool:
    """Whether the main thread is in a call to other ranks."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return frame is not None and frame.f_code.co_filename.startswith(_CALLS)


def _running(ranks: Mapping[int, Seen]) -> dict[int, Seen]:
    return {rank: seen for rank, seen in ranks.items() if seen.report.ended is None}


def _told(ranks: Mapping[int, Seen]) -> str | None:
    """What the first rank that ended says of it."""
    return next((seen.report.ended for seen in ranks.values() if seen.report.ended), None)


def _is_of_a_connection(error: BaseException) -> bool:
    # gloo has no class of errors: its messages begin with the file that they come from.
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    )
