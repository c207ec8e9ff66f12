"""The demo's data: real handwritten digits, coloured, with a caption each.

scikit-learn carries 1,797 scanned digits (UCI's test set), 8×8 pixels with 17 grey levels. Each
drawing of one varies size, place, slant, proportions, stroke thickness, ink and paper, so many
thousand pairs come from 1,797 writings. Two things are held out of training:

- writing: every fifth writing of each digit (in scikit-learn's order) is drawn only in "test" and
  "unseen", the others only in "train";
- combinations: digit d never appears in ink number d mod 6 outside "unseen": 10 of the 60
  (digit, ink) pairs, so each digit is trained in five inks and each ink with eight or nine digits.

Shapes: G glyph side, S image side, B pairs drawn at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from clipfast.errors import UserError

INKS: dict[str, tuple[int, int, int]] = {
    "black": (20, 20, 24),
    "red": (200, 20, 30),
    "green": (10, 120, 40),
    "blue": (20, 50, 190),
    "purple": (125, 25, 150),
    "brown": (115, 65, 20),
}
# Every ink is darker than every paper: any of the 36 pairs is legible, and no name is in both.
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "yellow": (255, 230, 70),
    "pink": (255, 175, 200),
    "grey": (180, 180, 182),
    "peach": (255, 180, 115),
    "turquoise": (95, 220, 215),
}
DIGIT_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
PHRASINGS = (
    "a {ink} handwritten {digit} on a {background} background",
    "a photo of a {ink} {digit} on {background} paper",
    "the digit {digit} written in {ink} ink on {background} paper",
    "a handwritten {digit} in {ink} on a {background} background",
    "{background} paper with a {ink} handwritten {digit}",
    "somebody wrote the number {digit} with a {ink} pen on a {background} page",
    "on a {background} background, the figure {numeral} in {ink}",
    "a {ink} {numeral} on {background}",
)
UNSEEN = frozenset((digit, list(INKS)[digit % len(INKS)]) for digit in range(10))
SPLITS = ("train", "test", "unseen")

_CHUNK = 256
_GLYPH = 40  # 8 pixels and a blank one on each side, four times enlarged
_GLYPH_CONTENT = 0.8  # the part of a glyph's side that the 8 pixels take
_SHADE = 6.0  # standard deviation of a colour around its name's, per channel of 255


@dataclass(frozen=True)
class DigitPair:
    """One image, uint8 (S, S, 3), its caption, and what is in it."""

    image: NDArray[np.uint8]
    caption: str
    digit: int
    ink: str
    background: str
    writing: int  # row of load_digits(): which handwritten original this is


def render_split(split: str, pairs: int, image_size: int, seed: int) -> Iterator[DigitPair]:
    """Draw `pairs` images of a split with their captions, the same ones for the same arguments.

    Args:
        split: "train"; "test" (held-out writing in trained combinations); "unseen" (held-out
            writing in the combinations of `UNSEEN`).
        pairs: how many, ≥ 1. Every writing of the split comes once before any comes again.
        image_size: S in pixels, ≥ 16.
        seed: ≥ 0; decides everything but which writing belongs to which split.
    Raises:
        UserError: an argument outside these.
    """
    if split not in SPLITS:
        raise UserError(f"split: expected one of {', '.join(SPLITS)}; got {split!r}")
    if pairs < 1:
        raise UserError(f"pairs: expected at least 1; got {pairs}")
    if image_size < 16:
        raise UserError(f"image_size: expected at least 16 pixels; got {image_size}")
    if seed < 0:
        raise UserError(f"seed: expected 0 or more; got {seed}")
    return _render(split, pairs, image_size, seed)


def split_writings(split: str) -> NDArray[np.int64]:
    """The rows of load_digits() that a split draws, ascending."""
    _, digits = _handwriting()
    held_out = np.zeros(len(digits), bool)
    for digit in range(10):
        held_out[np.flatnonzero(digits == digit)[4::5]] = True
    return np.flatnonzero(~held_out if split == "train" else held_out)


def sentences(
    digit: int | None = None, ink: str | None = None, background: str | None = None
) -> list[str]:
    """Every sentence that `PHRASINGS` can say, with what is given kept fixed: the prompts to
    ensemble for one class. `sentences(digit=7)` is a seven in each ink on each paper."""
    return [
        _caption(phrasing, d, i, b)
        for phrasing in PHRASINGS
        for d in (range(10) if digit is None else [digit])
        for i in (INKS if ink is None else [ink])
        for b in (BACKGROUNDS if background is None else [background])
    ]


def _caption(phrasing: str, digit: int, ink: str, background: str) -> str:
    return phrasing.format(digit=DIGIT_WORDS[digit], numeral=digit, ink=ink, background=background)


@cache
def _handwriting() -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Smoothly enlarged digits, float32 (1797, 1, G, G) with ink about 1, and what they are."""
    from sklearn.datasets import load_digits

    data = load_digits()
    small = torch.from_numpy(data.images).float().div(16).unsqueeze(1)
    glyphs = F.interpolate(F.pad(small, (1, 1, 1, 1)), size=_GLYPH, mode="bicubic")
    return glyphs, data.target.astype(np.int64)


def _render(split: str, pairs: int, image_size: int, seed: int) -> Iterator[DigitPair]:
    glyphs, digits = _handwriting()
    writings = split_writings(split)
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    inks_of = [
        [ink for ink in INKS if ((digit, ink) in UNSEEN) == (split == "unseen")]
        for digit in range(10)
    ]
    backgrounds = list(BACKGROUNDS)
    rounds = -(-pairs // len(writings))
    order = np.concatenate([rng.permutation(writings) for _ in range(rounds)])[:pairs]
    for start in range(0, pairs, _CHUNK):
        rows = order[start : start + _CHUNK]
        ink_B = [str(rng.choice(inks_of[digits[row]])) for row in rows]
        background_B = [backgrounds[i] for i in rng.integers(len(backgrounds), size=len(rows))]
        phrasing_B = rng.integers(len(PHRASINGS), size=len(rows))
        images = _draw(
            glyphs[rows],
            np.array([INKS[name] for name in ink_B], np.float32),
            np.array([BACKGROUNDS[name] for name in background_B], np.float32),
            image_size,
            rng,
        )
        for i, row in enumerate(rows):
            digit = int(digits[row])
            caption = _caption(PHRASINGS[phrasing_B[i]], digit, ink_B[i], background_B[i])
            yield DigitPair(images[i], caption, digit, ink_B[i], background_B[i], int(row))


def _draw(
    glyphs: torch.Tensor,
    ink_rgb: NDArray[np.float32],
    paper_rgb: NDArray[np.float32],
    image_size: int,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Glyphs (B, 1, G, G) in ink (B, 3) on paper (B, 3) → uint8 images (B, S, S, 3)."""
    B = len(glyphs)

    def uniform(low: float, high: float) -> NDArray[np.float64]:
        return rng.uniform(low, high, size=B)

    # The digit's 8×8 square, half-side `size` in image units of [-1, 1], slanted and turned.
    size, stretch = uniform(0.6, 0.9), np.exp(uniform(-0.13, 0.13))
    turn, slant = np.deg2rad(uniform(-12, 12)), uniform(-0.22, 0.22)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    shape = np.zeros((B, 2, 2))
    shape[:, 0, 0], shape[:, 0, 1], shape[:, 1, 1] = size * stretch, size * slant, size / stretch
    square = rotation.transpose(2, 0, 1) @ shape
    reach = np.abs(square) @ [0.75, 1]  # writings are as high as their square, and narrower
    centre = np.maximum(1 - reach, 0) * rng.uniform(-1, 1, size=(B, 2))
    to_glyph = np.linalg.inv(square / _GLYPH_CONTENT)
    theta = np.concatenate([to_glyph, -to_glyph @ centre[:, :, None]], axis=2)
    grid = F.affine_grid(
        torch.from_numpy(theta).float(), [B, 1, image_size, image_size], align_corners=False
    )
    strokes = F.grid_sample(glyphs, grid, align_corners=False)  # (B, 1, S, S)

    # Cutting the grey levels at `edge`, over a soft rim, makes strokes thick (low) or thin (high).
    edge, rim = uniform(0.34, 0.6), uniform(0.25, 0.5)
    coverage = (strokes - _column(edge)) / _column(rim) + 0.5
    coverage.clamp_(0, 1)
    ink = torch.from_numpy(ink_rgb + rng.normal(0, _SHADE, (B, 3)))
    paper = torch.from_numpy(paper_rgb + rng.normal(0, _SHADE, (B, 3)))
    image = torch.lerp(paper.float()[:, :, None, None], ink.float()[:, :, None, None], coverage)
    return image.clamp_(0, 255).round_().byte().permute(0, 2, 3, 1).contiguous().numpy()


def _column(values: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(values).float().view(-1, 1, 1, 1)
