"""Images or sentences, each beside what the model finds nearest to it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec, SubplotSpec
from numpy.typing import NDArray

from clipfast.eval.pictures.canvas import RIGHT, TEXT, WRONG, canvas, shortened

# An image, (H, W, 3) uint8, or a sentence.
Shown = NDArray[np.uint8] | str

_ROW = 1.35  # inches
_QUERY = 1.3  # as wide as so many neighbours
_IN_A_CELL, _IN_A_LINE = 22, 88  # columns of a sentence
_LINES = 5


class Neighbour(NamedTuple):
    """Attributes:
    shown: an image or a sentence.
    cosine: with the query.
    right: whether it belongs to the query; None where nobody knows.
    """

    shown: Shown
    cosine: float
    right: bool | None = None


def save_neighbours(
    path: Path,
    queries: Sequence[Shown],
    neighbours: Sequence[Sequence[Neighbour]],
    title: str,
    names: Sequence[str] | None = None,
) -> Figure:
    """A row for each query: it, and its neighbours, nearest first. Right ones are green with a ✓,
    wrong ones orange with a ✗. Neighbouring images stand side by side, sentences below each other.

    Args:
        neighbours: of each query, equally many.
        names: of each query, below it: its class, or its caption.

    Returns:
        What was drawn.

    Raises:
        OSError: it cannot be written.
    """
    with canvas(path, title, height=0.5 + _ROW * len(queries)) as figure:
        names = names or [""] * len(queries)
        rows = figure.add_gridspec(len(queries), 1)
        for i, (query, name, nearest) in enumerate(zip(queries, names, neighbours, strict=True)):
            if isinstance(nearest[0].shown, str):
                _draw_beside_sentences(figure, rows[i], query, name, nearest)
            else:
                _draw_beside_images(figure, rows[i], query, name, nearest)
    return figure


def _draw_beside_images(
    figure: Figure, row: SubplotSpec, query: Shown, name: str, nearest: Sequence[Neighbour]
) -> None:
    widths = (_QUERY, *(1.0 for _ in nearest))
    cells = GridSpecFromSubplotSpec(1, len(widths), row, width_ratios=widths)
    _draw_query(figure.add_subplot(cells[0]), query, name)
    for column, neighbour in enumerate(nearest, 1):
        axes = figure.add_subplot(cells[column])
        _show(axes, neighbour.shown)
        axes.set_xlabel(_verdict(neighbour), color=_colour(neighbour), fontsize=8)
        for spine in axes.spines.values():
            spine.set(visible=True, color=_colour(neighbour), linewidth=2.2)


def _draw_beside_sentences(
    figure: Figure, row: SubplotSpec, query: Shown, name: str, nearest: Sequence[Neighbour]
) -> None:
    cells = GridSpecFromSubplotSpec(1, 2, row, width_ratios=(_QUERY, 5))
    _draw_query(figure.add_subplot(cells[0]), query, name)
    axes = figure.add_subplot(cells[1])
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(len(nearest), 0))
    for line, neighbour in enumerate(nearest):
        colour = _colour(neighbour)
        axes.text(0, line + 0.5, _verdict(neighbour), fontsize=8, va="center", color=colour)
        words = shortened(str(neighbour.shown), _IN_A_LINE)
        axes.text(0.11, line + 0.5, words, fontsize=8, va="center", color=colour)


def _draw_query(axes: Axes, query: Shown, name: str) -> None:
    _show(axes, query)
    axes.set_xlabel(shortened(name, _IN_A_CELL), fontsize=8)
    axes.spines[:].set_visible(False)


def _show(axes: Axes, shown: Shown) -> None:
    axes.set(xticks=[], yticks=[])
    if isinstance(shown, str):
        words = textwrap.fill(
            " ".join(shown.split()), _IN_A_CELL, max_lines=_LINES, placeholder=" …"
        )
        axes.text(0.5, 0.5, words, fontsize=8, ha="center", va="center", color=TEXT)
        return
    axes.imshow(shown, interpolation="nearest" if max(shown.shape[:2]) <= 64 else "antialiased")


def _verdict(neighbour: Neighbour) -> str:
    mark = {True: "✓ ", False: "✗ ", None: ""}[neighbour.right]
    return f"{mark}{neighbour.cosine:.2f}"


def _colour(neighbour: Neighbour) -> str:
    return {True: RIGHT, False: WRONG, None: TEXT}[neighbour.right]
