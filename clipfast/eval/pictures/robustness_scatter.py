"""Accuracy under shifts against accuracy on the reference, and what a probe does to both."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import expit, logit

from clipfast.eval.pictures.canvas import (
    COLOURS,
    GREY,
    LEGEND_COLUMNS,
    PALE,
    TEXT,
    canvas,
    shortened,
)
from clipfast.eval.robustness.effective import Baseline
from clipfast.eval.robustness.evaluation import RobustnessTable

_LEAST, _MOST = 0.001, 0.999
_MARGIN, _LEAST_REACH = 0.25, 0.5  # logits
_TICKS = (
    *(0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
    *(0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.997, 0.999),
)
_APART = 0.07  # of an axis, between two ticks


def save_robustness_scatter(path: Path, table: RobustnessTable) -> Figure:
    """Each model at (accuracy on the reference, mean over the shifts), in the manner of the paper's
    figure 13: an arrow leads from zero-shot to the probe; the baseline's line is what accuracy on
    the reference foretells, and what lies above it is effective robustness.

    Both axes are of logits, in which that line is straight: 0 and 1 are drawn at 0.001 and 0.999.

    Returns:
        What was drawn.

    Raises:
        OSError: it cannot be written.
    """
    count = len(table.shifts)
    what = "its shift" if count == 1 else f"the mean of its {count} shifts"
    with canvas(path, f"{shortened(table.reference, 60)} against {what}", height=6.2) as figure:
        axes = figure.subplots()
        axes.set(xscale="logit", yscale="logit")
        _draw_models(axes, table)
        horizontal = _limits([row.reference for row in table.rows])
        vertical = _limits([row.average for row in table.rows])
        axes.set(xlim=horizontal, ylim=vertical)
        _draw_lines(axes, horizontal, vertical, table.baseline)
        for axis, limits in ((axes.xaxis, horizontal), (axes.yaxis, vertical)):
            axis.set_ticks(ticks := _ticks(*limits), list(map(_words, ticks)))
            axis.set_ticks([], minor=True)
        axes.grid()
        axes.set(
            xlabel=f"accuracy on {shortened(table.reference, 60)}",
            ylabel=f"accuracy, {what}" if count == 1 else "mean accuracy under the shifts",
        )
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _draw_models(axes: Axes, table: RobustnessTable) -> None:
    at = {
        (row.label, row.kind): (_inside(row.reference), _inside(row.average)) for row in table.rows
    }
    baselines = [place for (_, kind), place in at.items() if kind == "baseline"]
    if baselines:
        axes.plot(
            *zip(*baselines, strict=True), "o", color=GREY, markersize=5, label="baseline models"
        )
    labels = dict.fromkeys(row.label for row in table.rows if row.kind != "baseline")
    for label, colour in zip(labels, cycle(COLOURS), strict=False):
        zero_shot, probe = at.get((label, "zero-shot")), at.get((label, "linear-probe"))
        name = shortened(label, LEGEND_COLUMNS)
        if zero_shot:
            axes.plot(*zero_shot, "*", color=colour, markersize=15, label=f"{name}, zero-shot")
        if probe:
            axes.plot(*probe, "D", color=colour, markersize=7, label=f"{name}, probe")
        if zero_shot and probe:
            axes.annotate(
                "",
                xy=probe,
                xytext=zero_shot,
                arrowprops={
                    "arrowstyle": "->",
                    "color": colour,
                    "linewidth": 1.4,
                    "shrinkA": 8,
                    "shrinkB": 7,
                },
            )


def _draw_lines(
    axes: Axes,
    horizontal: tuple[float, float],
    vertical: tuple[float, float],
    baseline: Baseline | None,
) -> None:
    left, right = logit(horizontal)
    along: NDArray[np.float64] = expit(np.linspace(left, right, 200))
    if max(horizontal[0], vertical[0]) < min(horizontal[1], vertical[1]):
        name = "nothing lost: y = x"
        axes.plot(along, along, ":", color=GREY, linewidth=1.2, label=name, zorder=1)
    if baseline is not None:
        expected = [baseline.expected(x) for x in along]
        name = "expected of the baseline models"
        axes.plot(along, expected, color=TEXT, linewidth=1.4, label=name, zorder=1)
        name = "above: effective robustness"
        axes.fill_between(
            along, expected, _MOST, color=PALE, alpha=0.45, lw=0, label=name, zorder=0
        )


def _limits(accuracies: list[float]) -> tuple[float, float]:
    """All of them with a margin, and not too small a part of the axis."""
    places = [float(logit(_inside(a))) for a in accuracies]
    middle, reach = (min(places) + max(places)) / 2, (max(places) - min(places)) / 2
    reach = max(reach, _LEAST_REACH) + _MARGIN
    return float(expit(middle - reach)), float(expit(middle + reach))


def _ticks(low: float, high: float) -> list[float]:
    """Round accuracies between the two; of neighbours that would touch, the first."""
    apart = _APART * (logit(high) - logit(low))
    kept: list[float] = []
    for tick in _TICKS:
        if low <= tick <= high and (not kept or logit(tick) - logit(kept[-1]) >= apart):
            kept.append(tick)
    return kept


def _words(tick: float) -> str:
    """The outermost stand for all that lies beyond them."""
    beyond = {_LEAST: "≤ ", _MOST: "≥ "}.get(tick, "")
    return f"{beyond}{100 * tick:g}%"


def _inside(accuracy: float) -> float:
    return min(max(accuracy, _LEAST), _MOST)
