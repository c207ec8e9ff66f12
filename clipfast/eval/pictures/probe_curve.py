"""A probe's accuracy: over the labelled examples that it learned from, and over the strength of its
penalty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from clipfast.eval.pictures.canvas import COLOURS, LEGEND_COLUMNS, TEXT, canvas, percent, shortened

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

# shots, mean, lowest and highest of the seeds
Shots = tuple[int, float, float, float]


def save_probe_curve(
    path: Path,
    few_shots: Mapping[str, Sequence[Shots]],
    zero_shot: Mapping[str, float],
    full_probe: Mapping[str, float],
    title: str,
) -> Figure:
    """Accuracy over the labelled examples per class, of one or several models, in the manner of the
    paper's figure 6: zero-shot is a star at 0, a probe on all of the training data stands at the
    right.

    Args:
        few_shots: by model, by rising shots.
        zero_shot, full_probe: by model; either may be empty.

    Returns:
        What was drawn.

    Raises:
        OSError: it cannot be written.
    """
    labels = list(dict.fromkeys((*few_shots, *zero_shot, *full_probe)))
    shots = sorted({point[0] for points in few_shots.values() for point in points})
    with canvas(path, title, height=4.6) as figure:
        axes = figure.subplots()
        for label, colour in zip(labels, cycle(COLOURS), strict=False):
            points = few_shots.get(label, ())
            places = [_place(point[0]) for point in points]
            axes.fill_between(
                places,
                [low for *_, low, _ in points],
                [high for *_, high in points],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
            name = shortened(label, LEGEND_COLUMNS)
            axes.plot(places, [p[1] for p in points], "o-", color=colour, markersize=5, label=name)
            if label in zero_shot:
                axes.axhline(zero_shot[label], color=colour, linestyle=":", linewidth=1)
                axes.plot(0, zero_shot[label], "*", color=colour, markersize=14, clip_on=False)
            if label in full_probe:
                axes.plot(_all(shots), full_probe[label], "D", color=colour, markersize=7)
        ticks = [0.0, *map(_place, shots), *([_all(shots)] if full_probe else [])]
        names = ["0", *(f"{n:,}" for n in shots), *(["all"] if full_probe else [])]
        axes.set_xticks(ticks, names)
        axes.set(
            xlabel="labelled examples per class", ylabel="accuracy", xlim=(-0.3, max(ticks) + 0.3)
        )
        _percents(axes)
        _explain(figure, axes, bool(zero_shot), bool(few_shots), bool(full_probe))
    return figure


def save_lambda_curve(
    path: Path, tried: Sequence[tuple[float, float]], chosen: float, title: str
) -> Figure:
    """Accuracy on the validation data over the penalty's λ, the chosen one marked.

    Args:
        tried: (λ, accuracy) each, in any order.

    Returns:
        What was drawn.

    Raises:
        OSError: it cannot be written.
    """
    points = sorted(tried)
    with canvas(path, title, height=3.8) as figure:
        axes = figure.subplots()
        axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[0], markersize=4)
        best = dict(points)[chosen]
        axes.plot(chosen, best, "o", color=COLOURS[1], markersize=10, fillstyle="none", mew=2)
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda lam, _: _power_of_ten(lam))
        axes.set(xlabel=f"λ; chosen: {chosen:.3g}, {percent(best)}", ylabel="validation accuracy")
        _percents(axes)
    return figure


def _place(shots: int) -> float:
    """One step to the right for every doubling; 0 is where zero-shot stands."""
    return 1 + math.log2(shots)


def _all(shots: Sequence[int]) -> float:
    return _place(shots[-1]) + 1 if shots else 1


def _power_of_ten(value: float) -> str:
    return f"10{str(round(math.log10(value))).translate(_RAISED)}"


def _percents(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.grid(axis="y")


def _explain(
    figure: Figure, axes: Axes, zero_shot: bool, few_shots: bool, full_probe: bool
) -> None:
    """What colours and marks mean, outside of the curves."""
    handles, names = axes.get_legend_handles_labels()
    for marker, name, there in (
        ("*", "zero-shot", zero_shot),
        ("o", "probe; band: lowest to highest seed", few_shots),
        ("D", "probe on all training data", full_probe),
    ):
        if there:
            handles += axes.plot([], [], marker, color=TEXT, markersize=8 if marker == "*" else 5)
            names.append(name)
    figure.legend(handles, names, loc="outside lower center", ncols=2)
