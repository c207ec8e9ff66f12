"""What each class's images are taken for.

C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from clipfast.eval.pictures.canvas import PALE, TEXT, canvas, shortened

_MOST_NUMBERED = 12  # classes whose cells have room for a number
_MOST_NAMED = 30
_MOST_CELLS = 100  # a side; beyond it several classes share one
_PAIRS = 12
_NAME = 24  # columns


class Confused(NamedTuple):
    """Attributes:
    images: of class `true` that are taken for class `taken`.
    share: of the images of `true`.
    """

    true: int
    taken: int
    images: int
    share: float


def save_confusion(
    path: Path, confusion_CC: NDArray[np.int64], classes: Sequence[str], title: str
) -> Figure:
    """A matrix whose rows are shares of a class's images; of more than 30 classes, without their
    names and beside the pairs that are most often confused.

    Args:
        confusion_CC: images by their class (row) and the class they are taken for (column).

    Returns:
        What was drawn.

    Raises:
        OSError: it cannot be written.
    """
    count = len(classes)
    if count <= _MOST_NAMED:
        with canvas(path, title, height=min(8.4, 2.2 + 0.5 * count)) as figure:
            axes = figure.subplots()
            image = _draw_matrix(axes, row_shares(confusion_CC))
            _name_both_sides(axes, classes)
            if count <= _MOST_NUMBERED:
                _write_shares(axes, row_shares(confusion_CC))
            else:
                _draw_scale(figure, axes, image)
        return figure
    with canvas(path, title, height=5.4) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.05, 1))
        size = -(-count // _MOST_CELLS)
        image = _draw_matrix(left, row_shares(grouped(confusion_CC, size)), extent=count)
        _draw_scale(figure, left, image)
        note = "" if size == 1 else f", {size} to a cell"
        left.set(xlabel=f"taken for (number of the class{note})", ylabel="class")
        _list_pairs(right, most_confused(confusion_CC, _PAIRS), classes)
    return figure


def row_shares(confusion_CC: NDArray[np.int64]) -> NDArray[np.float64]:
    """(C, C) each row's sum is 1; NaN where a class has no image."""
    with np.errstate(invalid="ignore"):
        return confusion_CC / confusion_CC.sum(1, keepdims=True)


def grouped(confusion_CC: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Images of so many neighbouring classes together, in rows and columns; the last group may be
    smaller."""
    starts = np.arange(0, len(confusion_CC), size)
    return np.add.reduceat(np.add.reduceat(confusion_CC, starts, 0), starts, 1)


def most_confused(confusion_CC: NDArray[np.int64], count: int) -> list[Confused]:
    """The pairs with the largest shares, of equal ones those of most images; none without a
    mistake."""
    wrong_CC = confusion_CC.copy()
    np.fill_diagonal(wrong_CC, 0)
    shares_CC = np.nan_to_num(wrong_CC / confusion_CC.sum(1, keepdims=True).clip(1))
    true, taken = np.nonzero(wrong_CC)
    order = np.lexsort((-wrong_CC[true, taken], -shares_CC[true, taken]))[:count]
    return [
        Confused(int(t), int(k), int(wrong_CC[t, k]), float(shares_CC[t, k]))
        for t, k in zip(true[order], taken[order], strict=True)
    ]


def _draw_matrix(axes: Axes, shares: NDArray[np.float64], extent: int | None = None) -> AxesImage:
    """Dark is much; the scale is one of square roots, so that a few of a hundred are to be seen."""
    axes.set_facecolor(PALE)
    side = (extent or len(shares)) - 0.5
    image = axes.imshow(
        shares,
        cmap="Blues",
        norm=PowerNorm(0.5, 0, 1),
        interpolation="nearest",
        extent=(-0.5, side, side, -0.5),
    )
    axes.set_anchor("NW")
    axes.spines[:].set_visible(False)
    return image


def _draw_scale(figure: Figure, axes: Axes, image: AxesImage) -> None:
    bar = figure.colorbar(
        image,
        ax=axes,
        location="bottom",
        ticks=(0, 0.01, 0.05, 0.2, 0.5, 1),
        format=PercentFormatter(1, decimals=0),
        shrink=0.7,
        aspect=30,
    )
    bar.outline.set_visible(False)


def _name_both_sides(axes: Axes, classes: Sequence[str]) -> None:
    names = [shortened(name, _NAME) for name in classes]
    few = sum(len(name) for name in names) < 60
    axes.set_xticks(range(len(names)), names, rotation=0 if few else 90)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.set(xlabel="taken for", ylabel="class")


def _write_shares(axes: Axes, shares_CC: NDArray[np.float64]) -> None:
    for row, column in zip(*np.nonzero(shares_CC > 0), strict=True):
        share = shares_CC[row, column]
        axes.text(
            column,
            row,
            f"{100 * share:.1f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if share > 0.35 else TEXT,
        )


def _list_pairs(axes: Axes, pairs: Sequence[Confused], classes: Sequence[str]) -> None:
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(_PAIRS, -1))
    axes.text(0, -0.5, "Most confused" if pairs else "No image is taken for another class")
    for line, pair in enumerate(pairs):
        axes.text(0, line + 0.35, f"{pair.share:.0%}", fontsize=8.5, weight="bold", va="center")
        axes.text(0.13, line + 0.18, shortened(classes[pair.true], 46), fontsize=7.5, va="center")
        taken = f"→ {shortened(classes[pair.taken], 36)}  {pair.images:,}×"
        axes.text(0.13, line + 0.58, taken, fontsize=7.5, va="center")
