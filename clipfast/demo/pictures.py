"""The demo's two pictures: the loss over the steps, and test images with their best sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

_GREY, _TEXT, _LINE = "#9aa5b1", "#52606d", "#1f5fa8"
_RIGHT, _WRONG = "#1a7f37", "#b42318"


def save_training_curve(
    path: Path, losses: Sequence[float], batch_size: int, steps_per_epoch: int
) -> None:
    """Every step's loss, its mean over half an epoch, and what guessing would cost."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    epochs = np.arange(1, len(losses) + 1) / steps_per_epoch
    axes.plot(epochs, losses, color=_GREY, linewidth=0.6, label="each step")
    window = max(1, steps_per_epoch // 2)
    if len(losses) > window:
        mean = np.convolve(losses, np.ones(window) / window, mode="valid")
        middle = epochs[window // 2 :][: len(mean)]
        axes.plot(middle, mean, color=_LINE, linewidth=2, label="mean of half an epoch")
    chance = math.log(batch_size)
    axes.axhline(chance, color=_GREY, linestyle=":", linewidth=1)
    axes.text(
        epochs[-1], chance, f"guessing, ln {batch_size}", ha="right", va="bottom", color=_TEXT
    )
    axes.set(
        xlabel="epoch",
        ylabel="contrastive loss",
        title="Training",
        ylim=(0, None),
        xlim=(0, epochs[-1]),
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def save_contact_sheet(
    path: Path,
    images: Sequence[Tensor],
    captions: Sequence[str],
    sentences: Sequence[list[tuple[str, float]]],
    right: Sequence[bool],
) -> None:
    """A grid of test images, each over its best sentences; the first is green where it says the
    digit, ink and background that are there."""
    columns = 4
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(4.1 * columns, 2.75 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("Held-out writing, and the three sentences that the model finds most similar")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, image, caption, best, is_right in zip(
        grid, images, captions, sentences, right, strict=False
    ):
        axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_title(caption, fontsize=7.5, color=_TEXT)
        axes.set_xticks([])
        axes.set_yticks([])
        for line, (sentence, cosine) in enumerate(best):
            colour = (_RIGHT if is_right else _WRONG) if line == 0 else _TEXT
            axes.text(
                0.5,
                -0.06 - 0.11 * line,
                f"{cosine:.2f}  {sentence}",
                transform=axes.transAxes,
                ha="center",
                va="top",
                fontsize=8,
                color=colour,
            )
    figure.savefig(path, dpi=110)
