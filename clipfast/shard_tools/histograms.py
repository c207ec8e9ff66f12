"""The picture of `clipfast shards stats --plot`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from clipfast.shard_tools.measures import CONTEXT_LENGTH, QUANTITIES, Measures, Quantity

_BAR, _MARK, _TEXT = "#1f5fa8", "#b42318", "#52606d"
_BINS = 50
_TAIL = 0.995


def save_histograms(path: Path, measures: Measures, title: str) -> None:
    """One for each of `QUANTITIES` that has values."""
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}; the last bars count all that is larger", fontsize=10)
    for axes, (name, quantity) in zip(figure.subplots(2, 3).flat, QUANTITIES.items(), strict=True):
        values = measures.values(name)
        axes.set(xlabel=quantity.title, yticks=[])
        axes.spines[["top", "right", "left"]].set_visible(False)
        if len(values):
            _histogram(axes, values, quantity)
            if name == "caption_tokens":
                _mark_context(axes, measures.cut())
    figure.savefig(path, dpi=120)


def _histogram(axes: Axes, values: NDArray[np.float32], quantity: Quantity) -> None:
    """The few largest values would squeeze all others, so the last bar counts them."""
    low, high = float(values.min()), float(np.quantile(values, _TAIL))
    if low >= high:
        low, high = 0.95 * low, 1.05 * max(high, low, 1e-6)
    if quantity.wide:
        edges = np.geomspace(max(low, 1e-3), high, _BINS + 1)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    else:
        whole = quantity.digits == 0
        edges = np.linspace(
            low, high, 1 + (min(_BINS, max(int(high - low), 1)) if whole else _BINS)
        )
    axes.hist(np.clip(values, edges[0], edges[-1]), edges.tolist(), color=_BAR)
    median = float(np.median(values))
    axes.axvline(median, color=_TEXT, linewidth=1, linestyle=":")
    axes.set_title(f"median {median:,.{quantity.digits}f}", fontsize=9, color=_TEXT)


def _mark_context(axes: Axes, cut: int) -> None:
    if cut:
        axes.axvline(CONTEXT_LENGTH, color=_MARK, linewidth=1)
        axes.set_title(f"{axes.get_title()}; {cut:,} cut at {CONTEXT_LENGTH}", fontsize=9)
