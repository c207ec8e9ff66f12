"""Every op between what this machine computes and what its memory carries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from clipfast_bench.report.drawing import (
    COLOURS,
    GREY,
    MARKERS,
    TEXT,
    Named,
    Plot,
    label_points,
    new_figure,
    short_number,
    styled,
)
from clipfast_bench.report.results import Result, Row
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

_HEIGHT = 3.9


class Point(NamedTuple):
    """Attributes:
    intensity: FLOPs that the work needs over bytes that it needs.
    flops: of those FLOPs, how many a second.
    """

    row: Row
    intensity: float
    flops: float


class Roof(NamedTuple):
    """What the machine reached in the same run: FLOP/s in a matrix product, bytes/s in a copy."""

    flops: float
    bandwidth: float

    @property
    def ridge(self) -> float:
        """FLOPs per byte from which on arithmetic is the limit."""
        return self.flops / self.bandwidth

    def at(self, intensity: float) -> float:
        return min(self.flops, intensity * self.bandwidth)


def roof_of(result: Result) -> Roof | None:
    """None where the run measured no rates."""
    flops, bandwidth = result.rates.get("matmul_flops"), result.rates.get("copy_bytes")
    return Roof(float(flops), float(bandwidth)) if flops and bandwidth else None


def points_of(rows: Sequence[Row]) -> list[Point]:
    """Ours, of each row that was timed and whose work is known."""
    return [
        Point(row, row.flops / row.bytes, row.flops / row.ours.seconds)
        for row in rows
        if row.flops and row.bytes and row.ours.seconds
    ]


def roofline_plot(result: Result) -> Plot | None:
    """None without rates of the machine or without points."""
    roof, points = roof_of(result), points_of(result.rows)
    if roof is None or not points:
        return None
    with styled():
        figure = new_figure(_HEIGHT)
        axes = figure.subplots()
        axes.set_title("Roofline: ours below what this machine reached")
        axes.set_xscale("log")
        axes.set_yscale("log")
        _limits(axes, roof, points)
        _draw_roof(axes, roof)
        colours = _draw_points(axes, points)
        axes.set_xlabel("FLOPs over bytes that the work needs at least; hollow: peers")
        axes.set_ylabel("of those FLOPs, per second")
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            subs = (1, 2, 5) if high / low < 30 else (1,)
            axis.set_major_locator(LogLocator(10, subs=subs, numticks=9))
            axis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="minor", length=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: short_number(value, "FLOP/s"))
        )
        last = {p.row.op: p for p in points}
        named = [Named(p.intensity, p.flops, op, colours[op]) for op, p in last.items()]
        label_points(axes, [*_copy_label(axes, roof), *named])
    said = "; ".join(
        f"{p.row.title}: {p.intensity:,.3g} FLOP a byte, {short_number(p.flops, 'FLOP/s')}, "
        f"{p.flops / roof.at(p.intensity):.0%} of the roof"
        for p in points
    )
    return Plot("roofline", figure, f"{said}.")


def _limits(axes: Axes, roof: Roof, points: Sequence[Point]) -> None:
    xs = [p.intensity for p in points] + [roof.ridge]
    ys = [p.flops for p in points]
    axes.set_xlim(min(xs) / 4, max(xs) * 4)
    axes.set_ylim(min(*ys, roof.at(min(xs) / 4)) / 1.6, max(*ys, roof.flops) * 1.5)


def _draw_roof(axes: Axes, roof: Roof) -> None:
    low, high = axes.get_xlim()
    corners = sorted({low, min(max(roof.ridge, low), high), high})
    axes.plot(corners, [roof.at(x) for x in corners], color=TEXT, linewidth=1.2, zorder=1)
    axes.annotate(
        f"matrix product: {short_number(roof.flops, 'FLOP/s')}",
        (high, roof.flops),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        fontsize=7,
    )


def _copy_label(axes: Axes, roof: Roof) -> list[Named]:
    """On the slope of the roof, where it is in sight."""
    low = axes.get_xlim()[0]
    if low >= roof.ridge:
        return []
    x = low * (roof.ridge / low) ** 0.6
    return [Named(x, roof.at(x), f"copy: {short_number(roof.bandwidth, 'B/s')}", TEXT)]


def _draw_points(axes: Axes, points: Sequence[Point]) -> dict[str, str]:
    """Ours filled and peers hollow; returns each op's colour."""
    of_op: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        of_op[point.row.op].append(point)
    colours = {op: COLOURS[place % len(COLOURS)] for place, op in enumerate(of_op)}
    for place, (op, op_points) in enumerate(of_op.items()):
        colour = colours[op]
        marker = MARKERS[place % len(MARKERS)]
        curve = sorted((p.intensity, p.flops) for p in op_points if p.row.size is not None)
        if len(curve) > 1:
            axes.plot(*zip(*curve, strict=True), color=colour, linewidth=0.8, alpha=0.5, zorder=2)
        placed = [(p.intensity, p.flops) for p in op_points]
        axes.plot(*zip(*placed, strict=True), marker, color=colour, zorder=3)
        for point in op_points:
            speeds = [p.seconds for p in point.row.peers if p.seconds]
            work = point.row.flops or 0.0
            axes.plot(
                [point.intensity] * len(speeds),
                [work / seconds for seconds in speeds],
                "o",
                markersize=3,
                markerfacecolor="none",
                markeredgecolor=GREY,
                zorder=2,
            )
    return colours
