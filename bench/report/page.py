"""The page of a benchmark run: what is on it, in the order in which it is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipfast_bench.report.drawing import (
    device_words,
    mib_words,
    ratio_words,
    seconds_words,
    short_number,
    three_digits,
)
from clipfast_bench.report.results import OURS, Contender, Result, Row
from clipfast_bench.report.roofline import Roof, points_of, roof_of

import clipfast
from clipfast.report.template import Figure, asset, environment

_PACKAGE = "clipfast_bench.report"


@dataclass
class PagePlot:
    """Attributes:
    family: the section that it stands in; empty for the page's own.
    svg: the element.
    """

    family: str
    svg: str


@dataclass
class Line:
    """One contender of one row; each word is empty where there is nothing to say.

    Attributes:
        look: a class of the style sheet: "ours" or "".
        ratio_look: "slower" where ours is.
    """

    name: str
    look: str
    median: str
    ratio: str
    ratio_look: str
    spread: str
    memory: str


@dataclass
class Group:
    """A row of the result, with a line for each contender."""

    title: str
    note: str
    lines: list[Line]


@dataclass
class Section:
    family: str
    plots: list[str]
    groups: list[Group]
    has_memory: bool


@dataclass
class AnswerLine:
    row: str
    contender: str
    of: str
    error: str
    allowed: str
    right: bool


@dataclass
class Grid:
    """A table whose columns the file itself names."""

    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


def render(result: Result, plots: Sequence[PagePlot]) -> str:
    """The whole page as HTML, with everything in it."""
    answers = list(answer_lines(result.rows))
    return (
        environment(_PACKAGE)
        .get_template("bench.html")
        .render(
            title=machine_name(result),
            style=asset("style.css") + asset("bench.css", _PACKAGE),
            verdict=verdict(result),
            figures=figures(result, answers),
            method=list(method(result)),
            machine=list(machine_facts(result)),
            versions=sorted((result.machine.get("versions") or {}).items()),
            own_plots=[plot.svg for plot in plots if not plot.family],
            sections=[_section(result, family, plots) for family in result.families],
            answers=answers,
            left_out=list(left_out(result)),
            absent=list(absent_peers(result.rows)),
            verification=grid_of(result.verification),
            version=clipfast.__version__,
        )
    )


def machine_name(result: Result) -> str:
    """The GPU's, or the CPU's with its threads."""
    gpu = result.machine.get("gpu")
    if gpu:
        return str(gpu)
    name = str((result.machine.get("cpu") or {}).get("brand_raw") or "an unnamed machine")
    threads = result.machine.get("threads")
    return f"{name}, {threads} threads" if threads else name


def verdict(result: Result) -> str:
    """How many comparisons there are, who was faster, and what has no speed."""
    ratios = [peer.ratio for row in result.rows for peer in row.peers if peer.ratio is not None]
    faster = sum(ratio > 1 for ratio in ratios)
    words = [f"{_many(len(result.rows), 'benchmark')}."]
    if ratios:
        words.append(
            f"In {faster} of {_many(len(ratios), 'comparison')} ours takes less time than the "
            "other, in the median of paired rounds."
        )
    wrong = sum(line.right is False for line in answer_lines(result.rows))
    if wrong:
        are = "is wrong and has" if wrong == 1 else "are wrong and have"
        words.append(f"{_many(wrong, 'answer')} {are} no speed here.")
    if result.left_out:
        words.append(f"{_many(len(result.left_out), 'benchmark')} left out, listed below.")
    return " ".join(words)


def figures(result: Result, answers: Sequence[AnswerLine]) -> list[Figure]:
    """The numbers that one looks for first."""
    timed = sum(row.ours.seconds is not None for row in result.rows)
    found = [Figure("timed", f"{timed:,}", f"of {_many(len(result.rows), 'benchmark')}")]
    if answers:
        right = sum(line.right for line in answers)
        found.append(Figure("answers right", f"{right} of {len(answers)}", "ours and peers'"))
    for key, name, unit, note in (
        ("matmul_flops", "matrix product", "FLOP/s", "reached in this run"),
        ("copy_bytes", "copy", "B/s", "read and written, in this run"),
    ):
        if result.rates.get(key):
            found.append(Figure(name, short_number(result.rates[key], unit), note))
    if result.budget:
        found.append(Figure("budget", f"{result.budget:,.0f} s", "that the run was granted"))
    return found


def method(result: Result) -> Iterator[str]:
    """How it was measured, in sentences; only what holds for this file."""
    yield (
        "Ours and its peers run in turn in one process, round after round, so that the machine's "
        "moods meet all of them. A ratio is a peer's time over ours of the same round: the median "
        "over the rounds, and beside it the lowest and the highest. Above 1 ours is faster."
    )
    if any(row.device == "cuda" for row in result.rows):
        yield "On the GPU, time is between two CUDA events, with a cold second-level cache."
    if any(contender.answer for row in result.rows for contender in row.contenders):
        yield (
            "Answers come first: every contender's is compared with the reference, and only what "
            "is right is timed. A wrong one has no speed anywhere on this page."
        )
    else:
        yield (
            "The run compared answers before it timed anything and stopped at a wrong one; this "
            "file is from before the errors were recorded."
        )
    if any(c.memory_mib is not None for row in result.rows for c in row.contenders):
        yield "Memory is the peak beyond what inputs and gradients take."


def machine_facts(result: Result) -> Iterator[tuple[str, str]]:
    machine, commit = result.machine, result.commit
    cpu = machine.get("cpu") or {}
    system = " ".join(filter(None, map(machine.get, ("system", "machine"))))
    dirty = ", with uncommitted changes" if commit.get("dirty") else ""
    rates = ", ".join(
        f"{short_number(result.rates[key], unit)} in a {words}"
        for key, unit, words in (
            ("matmul_flops", "FLOP/s", "matrix product"),
            ("copy_bytes", "B/s", "copy"),
        )
        if result.rates.get(key)
    )
    facts = (
        ("GPU", machine.get("gpu")),
        ("CPU", cpu.get("brand_raw")),
        ("cores", cpu.get("count")),
        ("threads", machine.get("threads")),
        ("instructions", machine.get("cpu_capability")),
        ("reached", rates),
        ("system", system),
        ("Python", machine.get("python_version")),
        ("commit", f"{commit['id'][:12]}{dirty}" if commit.get("id") else None),
        ("date", result.datetime[:19].replace("T", " ")),
    )
    return ((name, str(value)) for name, value in facts if value)


def _section(result: Result, family: str, plots: Sequence[PagePlot]) -> Section:
    rows = result.family(family)
    return Section(
        family,
        [plot.svg for plot in plots if plot.family == family],
        [_group(row, roof_of(result)) for row in rows],
        any(contender.memory_mib is not None for row in rows for contender in row.contenders),
    )


def _group(row: Row, roof: Roof | None) -> Group:
    where = " on ".join(filter(None, (row.dtype, device_words(row.device))))
    notes = [f"{name} {three_digits(value)}" for name, value in row.figures.items()]
    if roof is not None:
        notes += [f"{p.flops / roof.at(p.intensity):.0%} of the roof" for p in points_of([row])]
    lines = [_line(c) for c in row.contenders if c.seconds is not None or c.memory_mib is not None]
    return Group(row.title, "; ".join(filter(None, (where, *notes))), lines)


def _line(contender: Contender) -> Line:
    ratio, spread = contender.ratio, contender.spread
    return Line(
        contender.name,
        "ours" if contender.name == OURS else "",
        "" if contender.seconds is None else seconds_words(contender.seconds),
        "" if ratio is None else ratio_words(ratio),
        "slower" if ratio is not None and ratio < 1 else "",
        "" if spread is None else f"{spread[0]:.2f} – {spread[1]:.2f}",
        "" if contender.memory_mib is None else mib_words(contender.memory_mib),
    )


def answer_lines(rows: Sequence[Row]) -> Iterator[AnswerLine]:
    for row in rows:
        for contender in row.contenders:
            if contender.answer is not None:
                error, allowed = contender.answer.error, contender.answer.allowed
                yield AnswerLine(
                    row.title,
                    contender.name,
                    contender.answer.of,
                    "not finite" if error is None else f"{error:.2g}",
                    "–" if allowed is None else f"{allowed:.2g}",
                    contender.answer.right,
                )


def left_out(result: Result) -> Iterator[tuple[str, str]]:
    """(why, which benchmarks), each reason once."""
    found: dict[str, list[str]] = {}
    for one in result.left_out:
        found.setdefault(one.reason, []).append(one.name)
    for reason, names in found.items():
        yield reason, "; ".join(names)


def absent_peers(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    """(peer, why, of which ops), each reason once."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for peer, reason in row.absent.items():
            ops = found.setdefault((peer, reason), [])
            if row.op not in ops:
                ops.append(row.op)
    for (peer, reason), ops in found.items():
        yield peer, reason, ", ".join(ops)


def grid_of(rows: Sequence[Any]) -> Grid:
    """Rows that are objects become columns by their keys; anything else is one cell."""
    objects = [row if isinstance(row, dict) else {"": row} for row in rows]
    columns = list(dict.fromkeys(key for row in objects for key in row))
    return Grid(columns, [[_cell(row.get(column)) for column in columns] for row in objects])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_cell, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(one)}" for key, one in value.items())
    return str(value)


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
