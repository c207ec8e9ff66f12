"""The evidence in one picture: how full a multiprocessor is, and what limits the calls."""

from __future__ import annotations

from collections.abc import Sequence

from clipfast_bench.gpu.calls import PAPER
from clipfast_bench.gpu.evidence import STATUS, Evidence, Record
from clipfast_bench.report.drawing import COLOURS, MARKERS, TEXT, Plot, new_figure, styled
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

_WIDTH, _HEIGHT = 7.6, 8.6
_TARGETS = ("sm_80", "sm_90", "sm_100")
_SHORT = (("attention ", "attention, "), (" forward + backward", ""), (", 16-bit", ""))


def draw(record: Record, name: str) -> Plot:
    """Both panels: 16-bit kernels, and 16-bit calls of heads of 64."""
    kernels = [k for k in record.kernels if not k.configuration.startswith("fp32")]
    with styled():
        figure = new_figure(_HEIGHT, _WIDTH)
        figure.suptitle(STATUS.capitalize(), x=0.01, ha="left", fontsize=9, color=TEXT)
        above, below = figure.subplots(2, 1, height_ratios=(1, 1.1))
        _occupancies(above, kernels)
        _intensities(below, record)
    return Plot(name, figure, "Occupancy of every kernel, and intensity of the stated calls.")


def _occupancies(axes: Axes, kernels: Sequence[Evidence]) -> None:
    names = list(dict.fromkeys((k.written_in, k.kernel) for k in kernels))
    axes.set_title("Occupancy, 16-bit: a mark for each configuration")
    for place, target in enumerate(_TARGETS):
        marks = sorted(
            {
                (k.occupancy, names.index((k.written_in, k.kernel)))
                for k in kernels
                if k.target == target and k.occupancy is not None
            }
        )
        axes.plot(
            [x for x, _ in marks],
            [y + 0.22 * (place - 1) for _, y in marks],
            MARKERS[place],
            color=COLOURS[place],
            markersize=4,
            label=target,
            linestyle="none",
        )
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(
        range(len(names)), [f"{kernel} ({language})" for language, kernel in names], fontsize=6.5
    )
    axes.set_xlim(0, 1.04)
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.set_xlabel("of the warps that a multiprocessor could hold")
    axes.legend(loc="lower right", fontsize=7, frameon=True, edgecolor="none")


def _intensities(axes: Axes, record: Record) -> None:
    calls = {
        key: call["intensity"]
        for key, call in record.calls.items()
        if call["intensity"] and key.endswith("16-bit") and _of_64(key)
    }
    ordered = sorted(calls, key=lambda key: calls[key])
    axes.set_title("FLOPs per byte of stated calls, 16-bit")
    axes.set_xscale("log")
    for place, gpu in enumerate(PAPER):
        ridge = gpu.tensor_flops / gpu.hbm_bytes
        axes.axvline(ridge, color=COLOURS[place], linestyle=("-", "--")[place], linewidth=1)
        axes.text(
            ridge * (0.93, 1.07)[place],
            -1.1,
            f"{gpu.name}: {ridge:.0f}",
            fontsize=7,
            ha=("right", "left")[place],
            va="center",
        )
    for y, key in enumerate(ordered):
        axes.plot(calls[key], y, "o", color=TEXT)
    axes.set_yticks(range(len(ordered)), [_short(key) for key in ordered], fontsize=6.5)
    axes.set_ylim(len(ordered) - 0.4, -1.8)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlabel("left of a line memory is the limit, right of it arithmetic")


def _of_64(key: str) -> bool:
    return " heads of " not in key or "heads of 64" in key


def _short(key: str) -> str:
    words = key.partition(", N =")[0].partition(", top")[0]
    for long, short in _SHORT:
        words = words.replace(long, short)
    return words.replace(" heads of 64", " heads")
