"""Curves as inline SVG that stretches to the width of the page; its words are HTML, which does not.

A chart's drawing is a square of 1000 × 1000 with y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_SIDE = 1000
_MOST_POINTS = 400
_Y_TICKS = 6
_X_TICKS = 5

Curve = list[tuple[float, float]]


@dataclass
class Series:
    """Attributes:
    name: in the legend and under the pointer.
    curve: (x, y) by rising x, without NaN.
    look: a class of the style sheet: "line", "faint" for what a smoother line lies over, "dots".
    """

    name: str
    curve: Curve
    look: str = "line"


@dataclass
class Tick:
    """Attributes:
    place: percent of the chart's height from the top, or of its width from the left.
    """

    place: float
    label: str


@dataclass
class Shape:
    """Attributes:
    look: classes of the style sheet.
    path: SVG's.
    name: of its series.
    """

    look: str
    path: str
    name: str


@dataclass
class Chart:
    """Attributes:
    points: per series {"name", "look", "at", "words"}, for the legend and the pointer: places
        in percent, and what to say of them.
    """

    title: str
    value: str
    shapes: list[Shape]
    y_ticks: list[Tick]
    x_ticks: list[Tick]
    x_name: str
    points: list[dict[str, Any]]


def make_chart(
    title: str,
    series: Sequence[Series],
    *,
    words: Callable[[float], str],
    tick_words: Callable[[float], str] | None = None,
    x_name: str = "step",
    from_zero: bool = False,
) -> Chart | None:
    """Draws series over one another; None where there is nothing to draw.

    Args:
        words: a value as a person reads it.
        tick_words: the same beside the axis, where the numbers are round.
        from_zero: the y axis begins at 0.
    """
    series = [Series(s.name, thinned(s.curve), s.look) for s in series if s.curve]
    if not series:
        return None
    xs = [x for s in series for x, _ in s.curve]
    low_x, high_x = min(xs), max(xs)
    if high_x == low_x:
        low_x, high_x = low_x - 0.5, high_x + 0.5
    low, high = _range(series, from_zero)

    def place(x: float, y: float) -> tuple[float, float]:
        up = (min(max(y, low), high) - low) / (high - low)
        return (x - low_x) / (high_x - low_x), 1 - up

    shapes: list[Shape] = []
    points: list[dict[str, Any]] = []
    colour = 0
    for s in series:
        placed = [place(x, y) for x, y in s.curve]
        look = "dots" if len(placed) == 1 else s.look
        shapes.append(Shape(f"{look} c{colour}", _path(placed, look == "dots"), s.name))
        if s.look == "line" and len(placed) <= 40:
            shapes.append(Shape(f"dots c{colour}", _path(placed, True), s.name))
        points.append(
            {
                "name": s.name,
                "look": f"{s.look} c{colour}",
                "at": [[round(100 * x, 2), round(100 * y, 2)] for x, y in placed],
                "words": [[f"{x:,.0f}", words(y)] for x, y in s.curve],
            }
        )
        colour += s.look != "faint"
    tick_words = tick_words or words
    return Chart(
        title=title,
        value=words(series[-1].curve[-1][1]),
        shapes=shapes,
        y_ticks=[Tick(100 * place(0, y)[1], tick_words(y)) for y in ticks(low, high, _Y_TICKS)],
        x_ticks=[
            Tick(100 * place(x, low)[0], short_number(x))
            for x in ticks(low_x, high_x, _X_TICKS, whole=True)
        ],
        x_name=x_name,
        points=points,
    )


def thinned(curve: Curve) -> Curve:
    """At most `_MOST_POINTS`: of each stretch, in turn, its lowest and its highest point."""
    if len(curve) <= _MOST_POINTS:
        return curve
    stretches = _MOST_POINTS // 2
    kept = []
    for i in range(stretches):
        part = curve[i * len(curve) // stretches : (i + 1) * len(curve) // stretches]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def smoothed(curve: Curve) -> Curve:
    """A mean over the neighbourhood, a twenty-fifth of the curve; of half as much at its ends."""
    reach = len(curve) // 50
    total, sums = 0.0, [0.0]
    for _, y in curve:
        total += y
        sums.append(total)
    found = []
    for i, (x, _) in enumerate(curve):
        first, last = max(0, i - reach), min(len(curve) - 1, i + reach)
        found.append((x, (sums[last + 1] - sums[first]) / (last - first + 1)))
    return found


def ticks(low: float, high: float, about: int, *, whole: bool = False) -> list[float]:
    """Round numbers between the two, so many or a few more or less."""
    raw = (high - low) / about
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(f * size for f in (1, 2, 2.5, 5, 10) if f * size >= raw * 0.999)
    if whole:
        step = max(1.0, float(math.ceil(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def short_number(value: float) -> str:
    """1500 as 1.5k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _range(series: Sequence[Series], from_zero: bool) -> tuple[float, float]:
    """Of the y axis: all that the smooth lines reach, and nearly all of the others, whose rare
    spikes would flatten everything."""
    everything = sorted(y for s in series for _, y in s.curve)
    rare = len(everything) // 200
    values = everything[rare : len(everything) - rare]
    values += [y for s in series if s.look != "faint" for _, y in s.curve]
    low, high = min(values), max(values)
    if from_zero:
        low = min(low, 0.0)
    spread = high - low
    if spread < 1e-12 * max(1.0, abs(high)):
        spread = abs(high) or 1.0
    return (low if from_zero else low - 0.06 * spread), high + 0.06 * spread


def _path(placed: Sequence[tuple[float, float]], dots: bool) -> str:
    """Dots are lines without length: their round ends keep their shape where the square is
    stretched."""
    words = [f"{round(_SIDE * x)} {round(_SIDE * y)}" for x, y in placed]
    return "".join(f"M{w}h0" for w in words) if dots else "M" + "L".join(words)
