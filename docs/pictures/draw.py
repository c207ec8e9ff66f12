"""Draws the pictures of docs/kernels.md: ``python docs/pictures/draw.py``.

All of it is computed: captions' lengths by the tokenizer, tiles by the kernels' own formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from clipfast_bench.inputs.captions import captions
from clipfast_kernels.ops.attention.tiles import Cost, cost, flash_attention_2
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from clipfast import tokenize

OURS, THEIRS, IDLE, DARK = "#5b4bb0", "#b0562b", "#e6e6ea", "#222222"
CONTEXT_LENGTH = 77


def packed_captions() -> Figure:
    """The same captions padded, as rows of 77 places, and packed, end to end."""
    lengths = np.diff(tokenize(captions(16), packed=True).cu_seqlens.numpy())
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    padded, packed = figure.subplots(2, 1, height_ratios=(4, 1))
    for row, length in enumerate(lengths):
        padded.add_patch(Rectangle((0, row), CONTEXT_LENGTH, 0.8, color=IDLE))
        padded.add_patch(Rectangle((0, row), length, 0.8, color=OURS))
    padded.set(xlim=(0, CONTEXT_LENGTH), ylim=(len(lengths), 0), yticks=[])
    padded.set_xticks([0, 20, 40, 60, CONTEXT_LENGTH])
    share = lengths.sum() / (len(lengths) * CONTEXT_LENGTH)
    padded.set_title(
        f"padded: {len(lengths)} captions × {CONTEXT_LENGTH} places, {share:.0%} of them words",
        loc="left",
    )
    start = 0
    for number, length in enumerate(lengths):
        shade = OURS if number % 2 else "#8d80cf"
        packed.add_patch(Rectangle((start, 0), length, 1, color=shade))
        start += length
    packed.set(xlim=(0, start), ylim=(0, 1), yticks=[])
    packed.set_title(f"packed: the same captions end to end, {start} places", loc="left")
    packed.set_xlabel("tokens; the borders are cu_seqlens")
    _plain(padded, packed)
    return figure


def contrastive_panels() -> Figure:
    """The similarity matrix in panels of rows: what is in memory at one moment, in both sweeps."""
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    forward, backward, products = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    for axes, title in (
        (forward, "forward: one panel at a time\ngives row and column sums"),
        (backward, "backward: the panel again,\nthen its two products"),
    ):
        axes.add_patch(Rectangle((0, 0), 8, 8, color=IDLE))
        axes.add_patch(Rectangle((0, 3), 8, 1, color=OURS))
        axes.plot([0, 8], [0, 8], color="white", linewidth=3)
        axes.set(xlim=(-1.6, 9.6), ylim=(9.8, -0.4), xticks=[], yticks=[], aspect="equal")
        axes.set_title(title, loc="left", fontsize=10)
        axes.text(4, 3.5, "panel of S", color="white", ha="center", va="center", fontsize=9)
    forward.add_patch(Rectangle((8.3, 0), 0.5, 4, color=THEIRS))
    forward.add_patch(Rectangle((0, 8.3), 8, 0.5, color=THEIRS))
    forward.text(9.1, 0.1, "Lr", va="top", color=THEIRS)
    forward.text(8, 9.6, "Lc, of all rows so far", ha="right", color=THEIRS, fontsize=9)
    backward.add_patch(Rectangle((8.3, 3), 0.9, 1, color=THEIRS))
    backward.add_patch(Rectangle((0, 8.3), 8, 0.9, color=THEIRS))
    backward.text(8.3, 4.2, "dÎ", va="top", color=THEIRS)
    backward.text(4, 9.75, "dT̂, added up", ha="center", color=THEIRS, fontsize=9)
    names = ("keeps S (N² memory)", "contrastive_loss", "row and column owners", "open_clip")
    counts = (3, 4, 5, 6)
    colours = (IDLE, OURS, IDLE, THEIRS)
    products.barh(names, counts, color=colours)
    for row, count in enumerate(counts):
        products.text(count + 0.1, row, f"{count} u", va="center")
    products.set(xlim=(0, 7), xticks=[])
    products.set_title("N×N×D products,\nforward and backward, by count", loc="left", fontsize=10)
    products.invert_yaxis()
    _plain(forward, backward, products)
    return figure


def last_block() -> Figure:
    """Which tokens of the last block each operation is computed for."""
    operations = ("keys, values", "queries", "attention out", "projection", "MLP")
    tokens = 20
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    whole, one = figure.subplots(1, 2, sharey=True)
    for axes, title, pooled_only in (
        (whole, "every block but the last", False),
        (one, "the last: only one token is pooled", True),
    ):
        for row, _ in enumerate(operations):
            for token in range(tokens):
                idle = pooled_only and row > 0 and token != tokens - 1
                colour = IDLE if idle else OURS
                axes.add_patch(Rectangle((token, row), 0.85, 0.8, color=colour))
        axes.set(xlim=(0, tokens), ylim=(len(operations), 0), xticks=[])
        axes.set_yticks(np.arange(len(operations)) + 0.4, operations)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("tokens of a caption; the last is its end")
    _plain(whole, one)
    return figure


def tile_waste() -> Figure:
    """Products that the CUDA kernels compute over those needed, beside tiles of 128 × 128."""
    shapes = [(f"{n}", n, False) for n in (50, 77, 197, 257, 577)] + [("77\ncausal", 77, True)]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    for axes, title, theirs, ours in (
        (both[0], "forward", "fwd", ("fwd",)),
        (both[1], "backward", "bwd", ("bwd_q", "bwd_kv")),
    ):
        waste = [_waste(cost, ours, n, causal) for _, n, causal in shapes]
        tiled = [_waste(flash_attention_2, (theirs,), n, causal) for _, n, causal in shapes]
        places = np.arange(len(shapes))
        for shift, colour, values, label in (
            (-0.2, OURS, waste, "tiles 16 wide, as clipfast's"),
            (0.2, THEIRS, tiled, "tiles 128 × 128, as FlashAttention-2's"),
        ):
            bars = axes.bar(places + shift, values, 0.38, color=colour, label=label)
            axes.bar_label(bars, fmt="%.1f", fontsize=8)
        axes.axhline(1, color=DARK, linewidth=0.8)
        axes.set_xticks(places, [name for name, _, _ in shapes])
        axes.set_title(title, loc="left")
        axes.set_xlabel("tokens of a sequence")
        axes.spines[["top", "right"]].set_visible(False)
    both[0].set_ylabel("products computed / needed")
    both[1].legend(frameon=False, fontsize=8, loc="upper center")
    return figure


def _waste(count: Callable[..., Cost], steps: Sequence[str], length: int, causal: bool) -> float:
    total = Cost(0, 0, 0)
    for step in steps:
        total = total.plus(count(step, 64, length, length, causal))
    return total.waste


def _plain(*every: Axes) -> None:
    for axes in every:
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)


def main() -> None:
    folder = Path(__file__).parent
    for draw in (packed_captions, contrastive_panels, last_block, tile_waste):
        # no date and no random ids: the same picture is the same file
        figure = draw()
        figure.savefig(folder / f"{draw.__name__}.svg", metadata={"Date": None})


if __name__ == "__main__":
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "clipfast"
    matplotlib.rcParams["svg.fonttype"] = "none"
    main()
