"""Each class's accuracy, the best first.

C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from clipfast.eval.pictures.canvas import COLOURS, GREY, TEXT, canvas, percent, shortened

_MOST_SHOWN = 40
_NAME = 30  # columns


def save_class_bars(
    path: Path,
    per_class_C: NDArray[np.float64],
    classes: Sequence[str],
    title: str,
    baseline: NDArray[np.float64] | None = None,
    baseline_name: str = "baseline",
) -> Figure:
    """Bars from the best to the worst class; of more than 40 classes the 20 best and the 20 worst.

    Args:
        per_class_C: shares; NaN for a class without images, which is left out.
        baseline: (C,) another model's, a mark on each bar.

    Returns:
        What was drawn.

    Raises:
        OSError: it cannot be written.
    """
    order = np.argsort(-per_class_C, kind="stable")
    order = order[: int(np.isfinite(per_class_C).sum())]
    half = _MOST_SHOWN // 2
    panels = [order] if len(order) <= _MOST_SHOWN else [order[:half], order[-half:]]
    with canvas(path, title, height=1.35 + 0.21 * len(panels[0])) as figure:
        drawn = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, shown in zip(drawn, panels, strict=True):
            _draw_bars(axes, shown, per_class_C, classes)
            if baseline is not None:
                _mark(axes, baseline[shown])
            _draw_mean(axes, float(np.nanmean(per_class_C)))
        if len(panels) == 2:
            drawn[0].set_title(f"the {half} best", fontsize=9)
            drawn[1].set_title(f"the {half} worst of {len(order):,}", fontsize=9)
        words = _words_below(per_class_C)
        if baseline is not None:
            words += f"; orange: {baseline_name}"
        figure.supxlabel(words, fontsize=9, color=TEXT)
    return figure


def _draw_bars(
    axes: Axes,
    shown: NDArray[np.int64],
    per_class_C: NDArray[np.float64],
    classes: Sequence[str],
) -> None:
    bars = axes.barh(range(len(shown)), per_class_C[shown], color=COLOURS[0], height=0.72)
    numbers = axes.bar_label(
        bars, [percent(s) for s in per_class_C[shown]], padding=3, fontsize=7.5
    )
    for number in numbers:
        number.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axes.set_yticks(range(len(shown)), [shortened(classes[c], _NAME) for c in shown])
    axes.tick_params("y", length=0, labelsize=8)
    axes.set(ylim=(len(shown) - 0.4, -0.6), xlim=(0, 1.16))
    axes.set_xticks((0, 0.25, 0.5, 0.75, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _mark(axes: Axes, accuracies: NDArray[np.float64]) -> None:
    """White around the mark, so that it is seen on the bar and off it."""
    places = range(len(accuracies))
    for size, colour in ((3.6, "white"), (2, COLOURS[1])):
        axes.plot(
            accuracies,
            places,
            linestyle="",
            marker="|",
            markersize=10,
            markeredgewidth=size,
            color=colour,
        )


def _draw_mean(axes: Axes, mean: float) -> None:
    axes.axvline(mean, color=GREY, linestyle=":", linewidth=1.2, zorder=0)


def _words_below(per_class_C: NDArray[np.float64]) -> str:
    mean, empty = float(np.nanmean(per_class_C)), int(np.isnan(per_class_C).sum())
    words = f"share of a class's images that are right; dotted: the mean, {percent(mean)}"
    return f"{words}; without images: {empty:,}" if empty else words
