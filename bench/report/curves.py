"""Time and memory over size: a plot for each op that was measured at more than one."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from clipfast_bench.report.drawing import (
    DASHES,
    MARKERS,
    OTHER_COLOURS,
    OURS_COLOUR,
    Named,
    Plot,
    device_words,
    file_name,
    label_points,
    mib_tick,
    mib_words,
    new_figure,
    seconds_tick,
    seconds_words,
    size_ticks,
    styled,
)
from clipfast_bench.report.results import OURS, Contender, Row
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

Points = dict[float, float]
_HEIGHT = 3.1
_LETTER = 0.062  # inches, of a curve's name


@dataclass
class Curves:
    """One op over one axis.

    Attributes:
        seconds, mebibytes: per contender, by size; ours first.
    """

    op: str
    axis: str
    family: str
    of: str  # device and dtype, and the benchmark where several are of the same op
    seconds: dict[str, Points] = field(default_factory=lambda: defaultdict(dict))
    mebibytes: dict[str, Points] = field(default_factory=lambda: defaultdict(dict))


def curves_of(rows: Iterable[Row]) -> list[Curves]:
    """The curves of all rows that lie on one, by op, axis, device and dtype."""
    found: dict[tuple[str, ...], Curves] = {}
    for row in rows:
        if row.size is None:
            continue
        key = (row.op, row.function, row.size.axis, row.device, row.dtype)
        if key not in found:
            of = " on ".join(filter(None, (row.dtype, device_words(row.device))))
            found[key] = Curves(row.op, row.size.axis, row.family, of)
        for contender in row.contenders:
            _add(found[key], row.size.value, contender)
    several = Counter((c.op, c.axis, c.of) for c in found.values())
    for (_, function, *_), curves in found.items():
        if several[curves.op, curves.axis, curves.of] > 1:
            curves.of = ", ".join(filter(None, (curves.of, function.removeprefix("test_"))))
    return list(found.values())


def _add(curves: Curves, size: float, contender: Contender) -> None:
    if contender.seconds is not None:
        curves.seconds[contender.name].setdefault(size, contender.seconds)
    if contender.memory_mib is not None and contender.memory_mib > 0:
        curves.mebibytes[contender.name].setdefault(size, contender.memory_mib)


class _Kind(NamedTuple):
    name: str
    words: Callable[[float], str]
    tick: Callable[[float], str]
    of: str


_TIME = _Kind("time", seconds_words, seconds_tick, "")
_MEMORY = _Kind("memory", mib_words, mib_tick, "beyond inputs and gradients")


def curve_plots(curves: Curves) -> Iterator[Plot]:
    """Of time and of memory, each where it was measured at two sizes or more."""
    for kind, points in ((_TIME, curves.seconds), (_MEMORY, curves.mebibytes)):
        if len({size for of_one in points.values() for size in of_one}) > 1:
            yield _plot(curves, kind, points)


def _plot(curves: Curves, kind: _Kind, points: dict[str, Points]) -> Plot:
    others = [name for name in points if name != OURS]
    places = {OURS: 0, **{name: place for place, name in enumerate(others, 1)}}
    with styled():
        figure = new_figure(_HEIGHT)
        axes = figure.subplots()
        axes.set_title(f"{curves.op}: {kind.name}")
        ends = draw_curves(axes, points, {name: _look(places[name]) for name in points})
        axes.set_xlabel(f"{curves.axis}{f' ({curves.of})' if curves.of else ''}")
        axes.set_ylabel(kind.of)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: kind.tick(value)))
        name_curves(axes, ends)
    last = max(size for of_one in points.values() for size in of_one)
    values = "; ".join(
        f"{name} {kind.words(of_one[last])}" for name, of_one in points.items() if last in of_one
    )
    return Plot(
        file_name(curves.op, kind.name, curves.axis, curves.of),
        figure,
        f"{kind.name.capitalize()} of {curves.op} over {curves.axis}, both logarithmic. "
        f"At {curves.axis} = {last:,.0f}: {values}.",
    )


class Look(NamedTuple):
    colour: str
    marker: str
    dashes: Any


def _look(place: int) -> Look:
    """Of ours for 0, of the peers from 1 on."""
    colour = OURS_COLOUR if place == 0 else OTHER_COLOURS[(place - 1) % len(OTHER_COLOURS)]
    return Look(colour, MARKERS[place % len(MARKERS)], DASHES[place % len(DASHES)])


def draw_curves(axes: Axes, points: dict[str, Points], looks: dict[str, Look]) -> list[Named]:
    """Draws each contender's; returns where they end, for their names."""
    ends = []
    for name, of_one in points.items():
        sizes = sorted(of_one)
        colour, marker, dashes = looks[name]
        values = [of_one[size] for size in sizes]
        axes.plot(sizes, values, color=colour, marker=marker, linestyle=dashes)
        ends.append(Named(sizes[-1], values[-1], name, colour))
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    few = high / low < 30
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if few else (1,), numticks=9))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)
    return ends


def name_curves(axes: Axes, ends: Sequence[Named]) -> None:
    """Makes as much room to the right of the curves as their names need, and writes these."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.canvas.draw()
    width = axes.get_window_extent().width / figure.dpi
    low, high = axes.get_xlim()
    span, wider = math.log(high / low), 1.0
    for end in ends:
        words = 0.16 + _LETTER * len(end.name)
        wider = max(wider, math.log(end.x / low) / span * width / max(width - words, width / 4))
    axes.set_xlim(low, low * math.exp(span * wider))
    size_ticks(axes)
    label_points(axes, sorted(ends, key=lambda end: -end.y))
