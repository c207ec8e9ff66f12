"""What all pictures share: their width, colours and letters, and how they are written."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from rich.cells import cell_len, set_cell_size

WIDTH = 8.0  # inches: 1,000 pixels
_DPI = 125
_TITLE_COLUMNS = 88
LEGEND_COLUMNS = 34  # of a model's name, two beside each other

TEXT, GREY, PALE = "#52606d", "#9aa5b1", "#e6eaee"
# Okabe and Ito's, told apart by every kind of colour vision.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#332288", "#8c6d31")
RIGHT, WRONG = "#00704f", "#b34700"

# For names in letters that DejaVu lacks: what Linux, Windows and macOS have.
_FALLBACKS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans Arabic", "Noto Sans Hebrew"),
    *("Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai"),
    *("WenQuanYi Zen Hei", "Droid Sans Fallback", "Unifont"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Nirmala UI", "Leelawadee UI"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS"),
)


@contextmanager
def canvas(path: Path, title: str, height: float) -> Iterator[Figure]:
    """A figure with a title, written as PNG when the block ends.

    Names are drawn as they stand: ``$`` and ``_`` are no formula. Letters that no font here has are
    boxes.

    Args:
        height: inches, of 125 pixels.

    Raises:
        OSError: it cannot be written.
    """
    with matplotlib.rc_context(_style()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        figure = Figure(figsize=(WIDTH, height), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(
            textwrap.fill(title, _TITLE_COLUMNS), x=0.01, ha="left", fontsize=11, weight="bold"
        )
        yield figure
        figure.savefig(path)


def shortened(name: str, columns: int) -> str:
    """On one line, cut to so many columns of a terminal, of which wide letters take two."""
    line = " ".join(name.split())
    if cell_len(line) <= columns:
        return line
    return set_cell_size(line, columns - 1).rstrip() + "…"


def percent(share: float) -> str:
    """As many digits as a figure of 1,000 images has."""
    return f"{share:.1%}"


def _style() -> dict[Any, Any]:
    installed = set(fontManager.get_font_names())
    return {
        "text.parse_math": False,
        "font.family": ["DejaVu Sans", *(name for name in _FALLBACKS if name in installed)],
        "font.size": 9,
        "text.color": TEXT,
        "axes.labelcolor": TEXT,
        "axes.edgecolor": GREY,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": PALE,
        "xtick.color": TEXT,
        "ytick.color": TEXT,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
    }
