"""A contest: contenders for one question, asked for their answers first, then timed in turn.

They take turns in one process, so that the machine's moods hit all alike. Who is wrong has no
speed; where ours is wrong, nobody has.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from clipfast_bench import peers
from clipfast_bench.harness import memory
from clipfast_bench.harness.answers import Answer
from clipfast_bench.harness.budget import OVER, Allotment, Budget
from clipfast_bench.harness.clock import Clock, Run, ToldClock

OURS = "ours"
FEWEST_ROUNDS = 3
COMPILE_SECONDS = 12.0  # about what compiling forward and backward takes on two cores
HEAVY_FROM, COMPILES_FROM = 60.0, 240.0  # seconds of a budget
LONG_RUN = 0.5  # seconds beside which warming up is little
Samples = dict[str, list[float]]


class Entrant(NamedTuple):
    """A contender that is ready.

    Attributes:
        run: what is timed.
        answer: how right it is; None where there is nothing to compare.
        units: of work in a run; seconds are of one.
    """

    run: Run
    answer: Callable[[], Answer] | None = None
    units: float = 1.0


class Contender(NamedTuple):
    """Attributes:
    name: "ours", or the peer's.
    make: imports and builds what it needs.
    serves: why it does not serve a device, as a sentence; empty where it does.
    compiled: by torch.compile, which takes seconds.
    heavy: importing it takes seconds, and nothing else here needs it.
    is_peer: False for what is timed as a measure, such as a part of ours; figures tell of it.
    """

    name: str
    make: Callable[[], Entrant]
    serves: peers.Serves = peers.torch_eager
    compiled: bool = False
    heavy: bool = False
    is_peer: bool = True


class Wrong(Exception):
    """Ours is: the case has no speed."""


class LeftOut(BaseException):
    """The case does not fit into the budget.

    No `Exception`: an alarm raises it in the midst of other libraries, which catch those.
    """


class Sink(Protocol):
    """Where a timed case goes: pytest-benchmark's fixture, as `recording` has it."""

    extra_info: dict[str, object]

    @property
    def timing(self) -> bool:
        """False where only answers are asked for."""

    def record(self, seconds: Sequence[float]) -> None: ...


class Subject(NamedTuple):
    """What a case is about, as results tell it.

    Attributes:
        op: the public function's name, or "loader", "train_step", …
        size: axis and value, where the case is a point of a curve.
        flops, nbytes: the least that the work takes.
    """

    op: str
    size: tuple[str, int] | None = None
    dtype: str = "float32"
    flops: float | None = None
    nbytes: float | None = None


@dataclass
class Contest:
    """One case's.

    Attributes:
        sink: takes the result.
        clock: of the device.
        budget, allotment: of the run, and this case's part of it.
        kind, work: of the case: what takes how much longer than a smaller one of its kind.
        least: seconds that it takes at least.
        on_round: called between rounds, when no clock runs, with the contender's name.
    """

    sink: Sink
    clock: Clock
    device: torch.device
    budget: Budget
    allotment: Allotment
    kind: str = ""
    work: float | None = None
    least: float = 0.0
    on_round: Callable[[str], None] = lambda what: None
    _began: float = field(init=False)
    _making_since: float | None = field(init=False, default=None)
    _peers: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._began = self.budget.now()
        if self.allotment.most <= 0:
            raise LeftOut(OVER)
        if self.work is not None:
            guess = self.budget.guess(self.kind, self.work) * (FEWEST_ROUNDS + 2)
            self.least = max(self.least, guess)
        self._check_fits(self.least)

    def hold(
        self,
        subject: Subject,
        contenders: Sequence[Contender],
        *,
        rounds: int,
        clock: Clock | None = None,
        memory_mib: Mapping[str, Callable[[], float]] | None = None,
        figures: Callable[[Samples], dict[str, float]] | None = None,
    ) -> Samples:
        """Asks all for their answers, and times those that are right.

        Args:
            subject: what it is about.
            contenders: ours first.
            rounds: without a budget; at most so many with one.
            clock: None is the device's.
            memory_mib: contender to what measures its memory, where the time allows.
            figures: what else there is to tell, from all samples.

        Returns:
            Seconds by contender and round; none where answers alone were asked for.

        Raises:
            Wrong, LeftOut: as their names say.
        """
        info = self.sink.extra_info
        info |= {"op": subject.op, "device": self.device.type, "dtype": subject.dtype}
        if subject.size is not None:
            info["size"] = dict(zip(("axis", "value"), subject.size, strict=True))
        entrants = self._right_ones(contenders)
        if not self.sink.timing:
            return {}
        clock = clock or self.clock
        rounds = self._fitting_rounds(entrants, clock, rounds)
        samples = self._timed(entrants, clock, rounds)
        info |= _beside_ours(samples, self._peers)
        if subject.flops is not None:
            info["flops"] = subject.flops
        if subject.nbytes is not None:
            info["bytes"] = subject.nbytes
        if figures is not None:
            info["figures"] = figures(samples)
        self._memory(entrants, memory_mib or {})
        self.sink.record(samples[OURS])
        return samples

    def _right_ones(self, contenders: Sequence[Contender]) -> dict[str, Entrant]:
        answers: dict[str, object] = {}
        absent: dict[str, str] = {}
        self.sink.extra_info |= {"answers": answers, "absent": absent}
        self._peers.clear()
        found: dict[str, Entrant] = {}
        for contender in contenders:
            reason = contender.serves(self.device) or self._no_time_for(contender)
            if reason:
                absent[contender.name] = reason
                continue
            self.on_round(f"{contender.name}: is it right?")
            try:
                entrant = self._made(contender)
                answer = entrant.answer() if entrant.answer is not None else None
            except Exception as error:
                if contender.name == OURS:
                    raise
                absent[contender.name] = _failed(error)
                continue
            if answer is not None:
                answers[contender.name] = answer.as_json()
                if not answer.right and contender.name == OURS:
                    raise Wrong(f"wrong: ours {answer}")
                if not answer.right:
                    continue
            found[contender.name] = entrant
            if contender.is_peer and contender.name != OURS:
                self._peers.append(contender.name)
            self._check_fits(0.0)
        return found

    def _made(self, contender: Contender) -> Entrant:
        """Its time is not the case's: what is imported now serves later ones too."""
        self._making_since = self.budget.now()
        try:
            return contender.make()
        finally:
            self._began += self.budget.now() - self._making_since
            self._making_since = None

    def end_if_overdue(self) -> None:
        """For an alarm, in the midst of a run that nobody knew the length of.

        Raises:
            LeftOut: it takes longer than the contest itself would wait for.
        """
        most = self.allotment.most
        limit = most + max(1.0, 0.1 * most)
        if self._elapsed() > limit or self.budget.is_over:
            raise LeftOut(too_long(max(limit, self._elapsed()), most))

    def _no_time_for(self, contender: Contender) -> str:
        if self.budget.seconds is None:
            return ""
        if contender.heavy and self.budget.seconds < HEAVY_FROM:
            return "importing it takes some seconds, for which the budget is too small"
        if not contender.compiled:
            return ""
        fits = self.allotment.most >= 2 * COMPILE_SECONDS
        large = self.budget.seconds >= COMPILES_FROM
        if large and fits and self.budget.grants("compiling", COMPILE_SECONDS):
            return ""
        return "compiling takes some seconds, for which the budget is too small"

    def _fitting_rounds(self, entrants: Mapping[str, Entrant], clock: Clock, rounds: int) -> int:
        """Warms up all of them, and says how many rounds there is time for."""
        a_round = 0.0
        if isinstance(clock, ToldClock):  # its runs are processes, and two of them gave answers
            a_round = self._elapsed()
        else:
            for name, entrant in entrants.items():
                self.on_round(f"{name}: warming up")
                a_round += self._warmed_up(entrant, clock, a_round)
        if self.work is not None:
            self.budget.learn(self.kind, self.work, a_round)
        if self.budget.seconds is None:
            return rounds
        self._check_fits(FEWEST_ROUNDS * a_round)
        left = self.allotment.target - self._elapsed()
        fitting = int(left / a_round) if a_round > 0 else rounds
        return min(rounds, max(FEWEST_ROUNDS, fitting))

    def _warmed_up(self, entrant: Entrant, clock: Clock, before: float) -> float:
        """Seconds of a run; of the second where a budget hangs on it, and the first was short."""
        began = self.budget.now()
        clock.seconds(entrant.run)
        first = self.budget.now() - began
        if self.budget.seconds is None or first > LONG_RUN:
            return first
        self._check_fits(FEWEST_ROUNDS * (before + first / 2))
        began = self.budget.now()
        clock.seconds(entrant.run)
        return self.budget.now() - began

    def _elapsed(self) -> float:
        until = self.budget.now() if self._making_since is None else self._making_since
        return until - self._began

    def _check_fits(self, more: float) -> None:
        needed = self._elapsed() + more
        if needed > self.allotment.most:
            raise LeftOut(too_long(needed, self.allotment.most, "about" if more else "more than"))

    def _timed(self, entrants: Mapping[str, Entrant], clock: Clock, rounds: int) -> Samples:
        """In turn, and each round by another first. Ctrl-C keeps whole rounds."""
        samples: Samples = {name: [] for name in entrants}
        order = list(entrants)
        try:
            for number in range(rounds):
                self.on_round(f"round {number + 1} of {rounds}")
                first = number % len(order)
                taken = {
                    name: clock.seconds(entrants[name].run) / entrants[name].units
                    for name in (*order[first:], *order[:first])
                }
                for name, seconds in taken.items():
                    samples[name].append(seconds)
                if number + 1 >= FEWEST_ROUNDS and self._elapsed() > self.allotment.most:
                    break
        except KeyboardInterrupt:
            if len(samples[OURS]) >= FEWEST_ROUNDS:
                self.sink.extra_info |= _beside_ours(samples, self._peers)
                self.sink.record(samples[OURS])
            raise
        return samples

    def _memory(
        self, entrants: Mapping[str, Entrant], processes: Mapping[str, Callable[[], float]]
    ) -> None:
        found = {}
        if self.device.type == "cuda":
            found = {name: memory.cuda_peak_mib(e.run) for name, e in entrants.items()}
        else:
            wanted = [name for name in processes if name in entrants]
            if wanted and self.budget.grants("memory", len(wanted) * memory.PROCESS_SECONDS):
                for name in wanted:
                    self.on_round(f"{name}: memory")
                    found[name] = processes[name]()
        if found:
            self.sink.extra_info["memory_mib"] = found


def _beside_ours(samples: Samples, names: Sequence[str]) -> dict[str, object]:
    """Peers' seconds, and of the rounds' ratios to ours the median, the lowest and the highest."""
    own = samples[OURS]
    ratios = {n: [t / o for t, o in zip(samples[n], own, strict=True)] for n in names}
    return {
        "peer_seconds": {name: samples[name] for name in names},
        "peer_over_ours": {name: statistics.median(found) for name, found in ratios.items()},
        "spread": {name: [min(found), max(found)] for name, found in ratios.items()},
    }


def _failed(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["without a message"]
    return f"failed: {type(error).__name__}: {lines[0][:160]}"


def too_long(needed: float, most: float, words: str = "more than") -> str:
    """Why a case is left out."""
    return f"it needs {words} {max(needed, 1.0):.0f} s, and its part of the budget is {most:.1f} s"
