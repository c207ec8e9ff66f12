"""What a run says of itself at its start and at its end: aligned names and values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from clipfast.train.monitoring.metrics import best_of, main_metric
from clipfast.train.monitoring.progress import gibibytes

Fact = tuple[str, str]


def facts_of(lines: Iterable[str]) -> list[Fact]:
    """Splits lines ``name: value``, as the parts of a run describe themselves."""
    return [(name, value) for name, _, value in (line.partition(": ") for line in lines)]


def aligned(title: str, facts: Sequence[Fact]) -> str:
    """A block of text; a name that several facts in a row share is written once.

    ::

        clipfast 0.1.0
          model  ViT-B-32, 151,277,313 parameters, on cpu
          data   1,000 pairs in a.tar
                 2,000 pairs in b.tar
    """
    width = max((len(name) for name, _ in facts), default=0)
    lines, before = [title], None
    for name, value in facts:
        lines.append(f"  {'' if name == before else name:<{width}}  {value}")
        before = name
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """In the two largest units: ``3 d 4 h``, ``2 h 5 min``, ``1 min 30 s``, ``12.3 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    for size, unit, small, small_unit in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} {int(seconds % size // small)} {small_unit}"
    return f"{seconds:.1f} s"


def final_facts(
    *,
    steps: int,
    seconds: float,
    samples_per_second: float,
    data_wait: float,
    skipped: int,
    memory: int,
    evaluations: Sequence[dict[str, Any]],
    files: Iterable[Fact],
) -> list[Fact]:
    """The block at the end of a run.

    Args:
        steps, seconds, samples_per_second, data_wait, skipped: of this start of it.
        memory: bytes, at the end.
        evaluations: `History`'s, of all its starts.
        files: to use next.
    """
    facts = [
        ("steps", f"{steps:,} in {duration(seconds)}" + f", {skipped:,} skipped" * bool(skipped)),
        ("speed", f"{samples_per_second:,.0f} samples/s, {data_wait:.1%} of the time in data wait"),
        ("memory", gibibytes(memory)),
    ]
    if (name := main_metric(evaluations)) is not None:
        last, best = evaluations[-1], best_of(evaluations, name)
        if name in last["metrics"]:
            facts.append(("last", f"{name} {last['metrics'][name]:.4f}, epoch {last['epochs']}"))
        if best is not None:
            facts.append(("best", f"{name} {best['metrics'][name]:.4f}, epoch {best['epochs']}"))
    return [*facts, *files]
