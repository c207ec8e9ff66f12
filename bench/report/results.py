"""What a result file says, row by row, whatever the age of its form.

A row is one benchmark: ours and its peers on one case. A contender has seconds only where it was
timed and, where the run checked answers, its answer was right.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from clipfast_bench.report import old_form

from clipfast.errors import UserError

OURS = "ours"
FAMILIES = ("ops", "feeding", "training", "evaluation")
# What the losses are timed in units of; no peer.
_UNIT = re.compile(r"one n×n×d product", re.IGNORECASE)
# Of a function's name that measures memory in a process of its own: its time is that process's.
_MEMORY = "_memory"


@dataclass(frozen=True)
class Answer:
    """Attributes:
    error: the largest difference from the reference; None where it is not finite.
    allowed: the largest that counts as right.
    of: what they are of, such as a gradient.
    """

    error: float | None
    allowed: float | None
    right: bool
    of: str = ""


@dataclass(frozen=True)
class Contender:
    """Attributes:
    seconds: the median; None where it was not timed.
    ratio: its time over ours, the median over the rounds; None for ours.
    spread: the lowest and the highest of these ratios.
    memory_mib: at the most, beyond inputs and gradients.
    """

    name: str
    seconds: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    memory_mib: float | None = None
    answer: Answer | None = None


@dataclass(frozen=True)
class Size:
    """Where a row lies on a curve."""

    axis: str
    value: float


@dataclass(frozen=True)
class Row:
    """Attributes:
    function: the benchmark's name without its parameters.
    case: its parameters, as a person reads them; empty where it has none.
    contenders: ours first.
    flops, bytes: the least that the work takes.
    figures: everything else that was measured.
    absent: peers that did not take part, and why.
    """

    name: str
    function: str
    op: str
    family: str
    case: str
    device: str
    dtype: str
    size: Size | None
    contenders: tuple[Contender, ...]
    flops: float | None = None
    bytes: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.op}, {self.case}" if self.case else self.op

    @property
    def ours(self) -> Contender:
        return self.contenders[0]

    @property
    def peers(self) -> tuple[Contender, ...]:
        return self.contenders[1:]


@dataclass(frozen=True)
class LeftOut:
    """What has no speed, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Result:
    """Attributes:
    machine, commit: as pytest-benchmark writes them.
    rates: what this machine reached in this run, a second: "matmul_flops", "copy_bytes".
    verification: rows of `clipfast_kernels.verify()`.
    budget: seconds that were granted.
    """

    machine: Mapping[str, Any]
    commit: Mapping[str, Any]
    datetime: str
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    verification: tuple[Any, ...]
    budget: float | None

    @property
    def rates(self) -> Mapping[str, float]:
        return self.machine.get("rates") or {}

    def family(self, name: str) -> list[Row]:
        return [row for row in self.rows if row.family == name]

    @property
    def families(self) -> list[str]:
        """Those that have rows, in the order in which they are read."""
        found = dict.fromkeys(row.family for row in self.rows)
        return sorted(found, key=lambda f: (f not in FAMILIES, f in FAMILIES and FAMILIES.index(f)))


def read_result(result: Any, source: str = "the result") -> Result:
    """Args:
        result: a result file's JSON.
        source: what to call it in an error.

    Raises:
        UserError: it is no such file's.
    """
    if not isinstance(result, dict) or not isinstance(result.get("benchmarks"), list):
        raise UserError(
            f'{source}: expected the JSON of a benchmark run, with a list "benchmarks"; '
            f"got {_kind(result)}"
        )
    try:
        rows = tuple(_told_apart([_row(old_form.upgraded(b)) for b in result["benchmarks"]]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{source}: expected benchmarks with name, stats and extra_info in the form of "
            f"`clipfast bench`; got one that lacks or has otherwise {error}"
        ) from error
    return Result(
        machine=result.get("machine_info") or {},
        commit=result.get("commit_info") or {},
        datetime=str(result.get("datetime", "")),
        rows=rows,
        left_out=tuple(
            LeftOut(_title_of(str(one.get("name") or one.get("op"))), str(one.get("reason", "")))
            for one in result.get("not_timed") or ()
        ),
        verification=tuple(result.get("verification") or ()),
        budget=result.get("budget_s"),
    )


def _title_of(name: str) -> str:
    """Of a benchmark that left no row."""
    op, case = name.removeprefix("test_").partition("[")[0], old_form.written_id(name)
    return f"{op}, {case}" if case else op


def _kind(result: Any) -> str:
    if isinstance(result, dict):
        return f"an object with {', '.join(map(repr, list(result)[:5])) or 'nothing in it'}"
    return f"a {type(result).__name__}"


def _row(benchmark: dict[str, Any]) -> Row:
    extra = benchmark["extra_info"]
    name = benchmark["name"]
    function = name.partition("[")[0]
    size = extra.get("size")
    return Row(
        name=name,
        function=extra.get("function") or function.replace(_MEMORY, ""),
        op=extra["op"],
        family=benchmark.get("group") or "ops",
        case=extra.get("case") or case_of(benchmark, size),
        device=extra.get("device", ""),
        dtype=extra.get("dtype", ""),
        size=Size(str(size["axis"]), float(size["value"])) if size else None,
        contenders=tuple(_contenders(benchmark, timed=_MEMORY not in function)),
        flops=extra.get("flops"),
        bytes=extra.get("bytes"),
        figures={k: float(v) for k, v in (extra.get("figures") or {}).items()},
        absent=dict(extra.get("absent") or {}),
    )


def _told_apart(rows: list[Row]) -> Iterator[Row]:
    """Cases that were run in several dtypes have these in their words."""
    dtypes: dict[str, set[str]] = {}
    for row in rows:
        dtypes.setdefault(row.title, set()).add(row.dtype)
    for row in rows:
        if len(dtypes[row.title]) > 1:
            yield replace(row, case=", ".join(filter(None, (row.case, row.dtype))))
        else:
            yield row


def _contenders(benchmark: dict[str, Any], *, timed: bool) -> list[Contender]:
    extra, stats = benchmark["extra_info"], benchmark.get("stats") or {}
    answers = {
        name: Answer(one.get("error"), one.get("allowed"), one["right"] is True, one.get("of", ""))
        for name, one in (extra.get("answers") or {}).items()
    }
    memory = extra.get("memory_mib") or {}
    samples = {k: v for k, v in (extra.get("peer_seconds") or {}).items() if not _UNIT.search(k)}
    own = list(stats.get("data") or ())

    def has_speed(name: str) -> bool:
        """Where answers were compared, only what is right."""
        return timed and (name not in answers or answers[name].right)

    ours_timed = has_speed(OURS) and stats.get("median") is not None
    ours = Contender(
        OURS,
        seconds=float(stats["median"]) if ours_timed else None,
        memory_mib=memory.get(OURS),
        answer=answers.get(OURS),
    )
    found = [ours]
    for name in dict.fromkeys((*samples, *answers, *memory)):
        if name == OURS:
            continue
        seconds = samples.get(name) if has_speed(name) else None
        compared = bool(seconds) and ours_timed
        found.append(
            Contender(
                name,
                seconds=statistics.median(seconds) if seconds else None,
                ratio=_ratio(extra, name, seconds or [], own) if compared else None,
                spread=_spread(extra, name, seconds or [], own) if compared else None,
                memory_mib=memory.get(name),
                answer=answers.get(name),
            )
        )
    return found


def _ratio(
    extra: dict[str, Any], name: str, seconds: list[float], own: list[float]
) -> float | None:
    stated = (extra.get("peer_over_ours") or {}).get(name)
    if stated is not None:
        return float(stated)
    ratios = _of_rounds(seconds, own)
    return statistics.median(ratios) if ratios else None


def _spread(
    extra: dict[str, Any], name: str, seconds: list[float], own: list[float]
) -> tuple[float, float] | None:
    stated = (extra.get("spread") or {}).get(name)
    if stated is not None:
        return float(stated[0]), float(stated[1])
    ratios = _of_rounds(seconds, own)
    return (min(ratios), max(ratios)) if ratios else None


def _of_rounds(seconds: list[float], own: list[float]) -> list[float]:
    """Ratios of the same round, where both lists tell of the same rounds."""
    if len(seconds) != len(own):
        return []
    return [theirs / ours for theirs, ours in zip(seconds, own, strict=True)]


def case_of(benchmark: dict[str, Any], size: dict[str, Any] | None) -> str:
    """The parameters of a benchmark as a person reads them.

    An id that somebody wrote stays as it is; one that pytest made of the values gets their names.
    """
    shown = old_form.shown(benchmark)
    if size:
        axis = str(size["axis"])
        others = {k: v for k, v in shown.items() if k.lower() != axis.lower()}
        own = f"{axis} = {size['value']:,}"
        return f"{own}, {old_form.words(others)}" if others else own
    written = old_form.written_id(benchmark["name"])
    return old_form.words(shown) if old_form.made_by_pytest(benchmark, written) else written
