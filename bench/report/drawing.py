"""What all plots share: colours, letters, labels that keep out of each other's way, and files.

A plot is drawn once and written as PNG, and as SVG whose colours a page may change in the dark.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import Bbox

from clipfast.eval.pictures.canvas import COLOURS, GREY, PALE, TEXT

OURS_COLOUR, OTHER_COLOURS = COLOURS[0], COLOURS[1:]
FASTER, SLOWER = COLOURS[0], COLOURS[1]
# Beside colours, so that a plot can be read without them.
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
WIDTH = 4.4  # inches: one column of a page, and a phone's width without shrinking the letters
_DPI = 200
_STYLE = {
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.which": "major",
    "grid.color": PALE,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.fonttype": "path",  # the same letters whatever fonts the reader has
}
# What the page calls the colours; style sheets say what they are in the light and in the dark.
_VARIABLES = {"#ffffff": "--card", TEXT: "--ink", GREY: "--edge", PALE: "--rule"}
_VARIABLES |= {colour: f"--k{i}" for i, colour in enumerate(COLOURS)}
# The same darker, for small words on white.
_WORDS = ("#005a8d", "#a84a00", "#00704f", "#9c4a79", "#855c00", "#1f6f9e", "#2a1c70", "#6b4c20")
_OF_WORDS = dict(zip(COLOURS, _WORDS, strict=True))
_VARIABLES |= {colour: f"--w{i}" for i, colour in enumerate(_WORDS)}


# Behind words that a line may pass under.
PATCH = {"facecolor": "#ffffff", "edgecolor": "none", "pad": 0.6}


@dataclass(frozen=True)
class Plot:
    """Attributes:
    name: of its files, without what follows the dot.
    figure: what is drawn.
    alt: the plot in a sentence, for those who do not see it.
    """

    name: str
    figure: Figure
    alt: str


@contextmanager
def styled() -> Iterator[None]:
    """Inside, figures are made, drawn and written as the others."""
    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(plot: Plot, folder: Path) -> list[Path]:
    """Writes NAME.png and NAME.svg; the same plot gives the same bytes.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{plot.name}.png", folder / f"{plot.name}.svg"
    with styled(), matplotlib.rc_context({"svg.hashsalt": plot.name}):
        plot.figure.savefig(png, metadata={"Software": None})
        plot.figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]


def inline_svg(path: Path, alt: str) -> str:
    """A plot's SVG as an element of a page: names of its own, and a page's colours."""
    text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    # A style in here would be the whole page's.
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable}, {colour})")
    prefix = re.sub(r"\W", "-", path.stem)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    head, rest = text.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(alt, quote=True)}">{rest}'


def size_ticks(axes: Axes) -> None:
    """Under a logarithmic x axis the sizes that were measured, as many as do not touch, the last
    first."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.canvas.draw()
    sizes = sorted({float(x) for line in axes.lines for x in line.get_xdata()}, reverse=True)
    kept: list[float] = []
    free = float("inf")  # pixels left of the last label
    for size in sizes:
        half = 0.031 * figure.dpi * len(f"{size:,.0f}")
        at = axes.transData.transform((size, 1))[0]
        if at + half < free:
            kept.append(size)
            free = at - half - 0.06 * figure.dpi
    axes.xaxis.set_major_locator(FixedLocator(kept[::-1]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


# Of the middle of a label's side from its point, in points: the first that is free is taken.
_OFFSETS = [(7, 0), (-7, 0), (7, 9), (7, -9), (-7, 9), (-7, -9), (0, 10), (0, -10)]
_OFFSETS += [(10, 17), (10, -17), (-10, 17), (-10, -17), (0, 21), (0, -21), (14, 28), (14, -28)]
_FAR = 8  # from where on a line leads from the label to its point
_STEP = 4  # pixels between the places of a line that labels keep clear of


class Named(NamedTuple):
    """A point with a name, in the colour of what it is a point of."""

    x: float
    y: float
    name: str
    colour: str


def label_points(axes: Axes, points: Sequence[Named]) -> None:
    """A name beside each point and beside no other, where it covers no point and no other name, and
    as little as may be of the lines."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.canvas.draw()
    reach = 3 * figure.dpi / 72
    marks = [
        Bbox.from_extents(x - reach, y - reach, x + reach, y + reach)
        for x, y in (axes.transData.transform(point[:2]) for point in points)
    ]
    lines = np.concatenate([np.zeros((0, 2)), *(_along(axes, line) for line in axes.lines)])
    names: list[Bbox] = []
    for own, point in zip(marks, points, strict=True):
        others = [mark for mark in marks if mark is not own]
        names.append(_words_of(_best_note(axes, point, own, others, names, lines)))


def _words_of(note: Annotation) -> Bbox:
    """Where an annotation's words lie; its own extent has its arrow."""
    figure = note.get_figure(root=True)
    note.update_positions(figure.canvas.get_renderer())
    return Text.get_window_extent(note)


def _along(axes: Axes, line: Line2D) -> np.ndarray:
    """(n, 2) pixels of a drawn line, a few apart; of a vertical or horizontal rule nothing."""
    if line.get_transform() != axes.transData or line.get_linestyle() == "None":
        return np.zeros((0, 2))
    corners = axes.transData.transform(np.column_stack(line.get_data()).astype(float))
    parts = [corners[:1]]
    for begin, end in itertools.pairwise(corners):
        count = max(2, int(np.hypot(*(end - begin)) // _STEP))
        parts.append(np.linspace(begin, end, count))
    return np.concatenate(parts)


def _best_note(
    axes: Axes,
    point: Named,
    own: Bbox,
    others: Sequence[Bbox],
    names: Sequence[Bbox],
    lines: np.ndarray,
) -> Annotation:
    frame = axes.get_window_extent()
    costs = []
    for offset in _OFFSETS:
        note = _note(axes, point, offset)
        box = _words_of(note)
        note.remove()
        outside = not (frame.x0 <= box.x0 and box.x1 <= frame.x1 + 1)
        outside |= not (frame.y0 <= box.y0 and box.y1 <= frame.y1 + 1)
        covered = sum(box.overlaps(other) for other in (own, *others, *names))
        elsewhere = sum(_gap(box, other) <= _gap(box, own) for other in others)
        x, y = lines.T
        crossed = np.sum((box.x0 < x) & (x < box.x1) & (box.y0 < y) & (y < box.y1))
        costs.append(1e6 * outside + 1e3 * covered + 20.0 * elsewhere + float(crossed))
        if costs[-1] == 0:
            break
    return _note(axes, point, _OFFSETS[int(np.argmin(costs))])


def _gap(a: Bbox, b: Bbox) -> float:
    """Pixels between two boxes."""
    x = max(a.x0 - b.x1, b.x0 - a.x1, 0)
    y = max(a.y0 - b.y1, b.y0 - a.y1, 0)
    return float(np.hypot(x, y))


def _note(axes: Axes, point: Named, offset: tuple[float, float]) -> Annotation:
    dx, dy = offset
    leader = {"arrowstyle": "-", "color": point.colour, "linewidth": 0.8}
    return axes.annotate(
        point.name,
        point[:2],
        xytext=offset,
        textcoords="offset points",
        ha="left" if dx > 0 else "right" if dx < 0 else "center",
        va="center",
        fontsize=7.5,
        color=_OF_WORDS.get(point.colour, point.colour),
        bbox=PATCH,
        zorder=5,
        arrowprops=leader if abs(dy) > _FAR else None,
    )


def file_name(*parts: str) -> str:
    """Words as a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def device_words(device: str) -> str:
    return {"cpu": "CPU", "cuda": "GPU"}.get(device, device)


_UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))


def seconds_words(seconds: float) -> str:
    """Three digits and a unit."""
    unit, factor = _unit(seconds)
    return f"{three_digits(seconds / factor)} {unit}"


def seconds_tick(seconds: float) -> str:
    """Of an axis, where numbers are round."""
    unit, factor = _unit(seconds)
    return f"{seconds / factor:.3g} {unit}"


def _unit(seconds: float) -> tuple[str, float]:
    return next((one for one in _UNITS if seconds >= 0.9995 * one[1]), _UNITS[-1])


def mib_tick(mib: float) -> str:
    return f"{mib:,.10g} MiB"


def mib_words(mib: float) -> str:
    return f"{three_digits(mib)} MiB" if mib < 1000 else f"{mib:,.0f} MiB"


def three_digits(value: float) -> str:
    """0.123, 1.23, 12.3, 123, 1,230."""
    if value == 0:
        return "0"
    magnitude = abs(value)
    if magnitude >= 100:
        return f"{value:,.0f}"
    if magnitude < 0.001:
        return f"{value:.2e}"
    return f"{value:#.3g}"


def ratio_words(ratio: float) -> str:
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.1f}×"


def short_number(value: float, unit: str) -> str:
    """1.2e12 FLOP/s as 1.2 TFLOP/s."""
    for factor, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}"
