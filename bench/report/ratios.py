"""How long peers take over ours: a bar for each, from the line at 1, with its spread."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from clipfast_bench.report.drawing import (
    FASTER,
    PATCH,
    SLOWER,
    TEXT,
    Plot,
    file_name,
    new_figure,
    ratio_words,
    styled,
)
from clipfast_bench.report.results import Contender, Row
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

_MOST_BARS = 26  # of one picture
_LINE = 0.155  # inches
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_FEW_TICKS = (0.8, 0.9, 1, 1.1, 1.2, 1.5, 2)


def ratio_plots(family: str, rows: Sequence[Row]) -> Iterator[Plot]:
    """One or more pictures of a family; none where nothing was compared."""
    compared = [(row, [p for p in row.peers if p.ratio is not None]) for row in rows]
    compared = [(row, peers) for row, peers in compared if peers]
    parts = _parts(compared)
    for number, part in enumerate(parts, 1):
        yield _plot(family, part, number, len(parts))


def _parts(
    compared: Sequence[tuple[Row, list[Contender]]],
) -> list[list[tuple[Row, list[Contender]]]]:
    """As few pictures as hold all bars, of about as many bars each."""
    total = sum(len(peers) for _, peers in compared)
    if total == 0:
        return []
    wanted = math.ceil(total / math.ceil(total / _MOST_BARS))
    parts: list[list[tuple[Row, list[Contender]]]] = [[]]
    bars = 0
    for row, peers in compared:
        if bars >= wanted:
            parts.append([])
            bars = 0
        parts[-1].append((row, peers))
        bars += len(peers)
    return parts


def _plot(family: str, part: Sequence[tuple[Row, list[Contender]]], number: int, of: int) -> Plot:
    lines = sum(1.5 + 2 * len(peers) for _, peers in part)
    which = f" ({number} of {of})" if of > 1 else ""
    with styled():
        figure = new_figure(0.75 + _LINE * lines)
        axes = figure.subplots()
        axes.set_title(f"{family}: peer's time over ours{which}")
        axes.set_xscale("log")
        _limits(axes, [peer for _, peers in part for peer in peers])
        y = 0.0
        for row, peers in part:
            _write(axes, 0, y + 0.85, row.title, weight="bold")
            y += 1.5
            for peer in peers:
                _bar(axes, peer, y)
                y += 2
        axes.set_ylim(lines + 0.2, -0.2)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        axes.axvline(1, color=TEXT, linewidth=0.9, zorder=4)
        axes.set_xlabel("to the right of 1: ours is faster")
    said = "; ".join(
        f"{row.title}: {', '.join(f'{p.name} {ratio_words(p.ratio or 0)}' for p in peers)}"
        for row, peers in part
    )
    return Plot(file_name("ratios", family, str(number) if of > 1 else ""), figure, f"{said}.")


def _write(axes: Axes, x: float, y: float, words: str, **style: Any) -> None:
    """Over the lines, which stop beside it; x in shares of the axes, y in lines."""
    across = axes.get_yaxis_transform()
    axes.text(x, y, words, transform=across, va="center", zorder=5, bbox=PATCH, **style)


def _bar(axes: Axes, peer: Contender, y: float) -> None:
    """The peer's name and ratio on one line, the bar on the next."""
    assert peer.ratio is not None
    _write(axes, 0, y + 0.55, peer.name, fontsize=7.5)
    _write(axes, 1, y + 0.55, ratio_words(peer.ratio), fontsize=7.5, ha="right")
    colour = FASTER if peer.ratio >= 1 else SLOWER
    axes.barh(y + 1.35, peer.ratio - 1, height=0.62, left=1, color=colour, zorder=2)
    if peer.spread is not None:
        axes.plot(peer.spread, [y + 1.35] * 2, color=TEXT, linewidth=1, zorder=3)
        axes.plot(peer.spread, [y + 1.35] * 2, "|", color=TEXT, markersize=5, zorder=3)


def _limits(axes: Axes, peers: Sequence[Contender]) -> None:
    ends = [1.0]
    for peer in peers:
        ends += [peer.ratio or 1.0, *(peer.spread or ())]
    low, high = min(ends), max(ends)
    room = (high / low) ** 0.04
    axes.set_xlim(low / room, high * room)
    ticks = _TICKS if high / low > 3 else _FEW_TICKS
    inside = [tick for tick in ticks if low / room <= tick <= high * room]
    axes.xaxis.set_major_locator(FixedLocator(inside))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
