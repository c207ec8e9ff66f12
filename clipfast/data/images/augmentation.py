"""What training does to an image by chance: open_clip's augmentations, drawn apart from the pixels.

A draw is a pure function of the image's size and the generator, so every decoder shows the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any, NamedTuple

from clipfast.errors import UserError


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Draw(NamedTuple):
    """What happens to one image.

    Attributes:
        box: the part that is resized to the model's input.
        jitter: (operation, factor) in the order in which they follow; hue's factor is a share of
            the colour circle.
        grey: whether colour goes, last.
        interpolation: by which the box is resized, "bicubic" or "bilinear".
    """

    box: Box
    jitter: tuple[tuple[str, float], ...] = ()
    grey: bool = False
    interpolation: str = "bicubic"

    @property
    def changes_colour(self) -> bool:
        return self.grey or bool(self.jitter)


_OPERATIONS = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True)
class Augmentation:
    """open_clip 3.3.0's training transform, without tensor conversion and normalisation.

    Attributes:
        scale: smallest and largest share of the image's area in the random crop.
        ratio: its narrowest and widest aspect ratio.
        color_jitter: largest change of brightness, contrast, saturation (as a share) and hue (as a
            part of the colour circle, at most half of it).
        color_jitter_prob: of an image to be jittered.
        gray_scale_prob: of an image to lose its colour.
        interpolation: "bicubic", "bilinear", or "random", one of the two for each image.
    """

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    color_jitter_prob: float = 0.0
    gray_scale_prob: float = 0.0
    interpolation: str = "bicubic"

    @classmethod
    def of(cls, aug_cfg: Mapping[str, object], interpolation: str = "bicubic") -> Augmentation:
        """From --aug-cfg, with the meanings of open_clip's AugmentationCfg.

        Without `use_timm`, `ratio`, `re_prob` and `re_count` have no effect, nor has `color_jitter`
        without `color_jitter_prob`. With it the jitter is always applied, and both probabilities
        have no effect. It mirrors no image, as open_clip calls timm with `hflip=0`.

        Args:
            interpolation: the model's, or --image-interpolation. It has an effect with `use_timm`
                alone: without it open_clip trains on bicubic crops whatever is asked for.

        Raises:
            UserError: an unknown key, a value out of range, or random erasing.
        """
        cfg = {key: value for key, value in aug_cfg.items() if value is not None}
        if unknown := cfg.keys() - _EXPECTED.keys():
            raise UserError(
                f"--aug-cfg: expected {', '.join(_EXPECTED)}; got {', '.join(sorted(unknown))}"
            )
        for key, value in cfg.items():
            expected, holds = _EXPECTED[key]
            if not holds(value):
                raise UserError(f"--aug-cfg: {key}: expected {expected}; got {value!r}")
        if cfg.get("use_timm"):
            return replace(_with_timm(cfg), interpolation=interpolation)
        return _without_timm(cfg)

    def draw(self, height: int, width: int, random: Random) -> Draw:
        """The crop first, then the jitter, grey and the interpolation."""
        box = self._box(height, width, random)
        jitter: tuple[tuple[str, float], ...] = ()
        if self.color_jitter_prob and random.random() < self.color_jitter_prob:
            jitter = self._jitter(random)
        grey = random.random() < self.gray_scale_prob
        interpolation = self.interpolation
        if interpolation == "random":
            interpolation = random.choice(("bilinear", "bicubic"))
        return Draw(box, jitter, grey, interpolation)

    def _box(self, height: int, width: int, random: Random) -> Box:
        """Ten tries, then the largest central box in range."""
        low, high = (math.log(r) for r in self.ratio)
        for _ in range(10):
            area = height * width * random.uniform(*self.scale)
            ratio = math.exp(random.uniform(low, high))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return Box(random.randint(0, height - h), random.randint(0, width - w), h, w)
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w = max(min(width, round(height * ratio)), 1)
        h = max(min(height, round(w / ratio)), 1)
        return Box((height - h) // 2, (width - w) // 2, h, w)

    def _jitter(self, random: Random) -> tuple[tuple[str, float], ...]:
        factors = []
        for operation, most in zip(_OPERATIONS, self.color_jitter, strict=True):
            centre = 0.0 if operation == "hue" else 1.0
            low = centre - most if operation == "hue" else max(centre - most, 0.0)
            if most:
                factors.append((operation, random.uniform(low, centre + most)))
        random.shuffle(factors)
        return tuple(factors)


def _with_timm(cfg: Mapping[str, Any]) -> Augmentation:
    if cfg.get("re_prob"):
        raise UserError(
            "--aug-cfg: re_prob: expected 0, as random erasing is not supported: images are bytes "
            f"until they are normalised on the device; got {cfg['re_prob']}"
        )
    jitter = cfg.get("color_jitter", 0.0)
    if isinstance(jitter, (int, float)):
        jitter = (jitter,) * 3
    return Augmentation(
        scale=tuple(cfg.get("scale", Augmentation.scale)),
        ratio=tuple(cfg.get("ratio", Augmentation.ratio)),
        color_jitter=(*jitter, 0.0)[:4],
        color_jitter_prob=float(any(jitter)),
    )


def _without_timm(cfg: Mapping[str, Any]) -> Augmentation:
    jitter: tuple[float, ...] = (0.0,) * 4
    if cfg.get("color_jitter_prob"):
        jitter = cfg.get("color_jitter", ())
        if isinstance(jitter, (int, float)) or len(jitter) != 4:
            raise UserError(
                "--aug-cfg: color_jitter: expected four numbers with color_jitter_prob, without "
                f"use_timm; got {jitter!r}"
            )
    return Augmentation(
        scale=tuple(cfg.get("scale", Augmentation.scale)),
        color_jitter=(jitter[0], jitter[1], jitter[2], jitter[3]),
        color_jitter_prob=cfg.get("color_jitter_prob", 0.0),
        gray_scale_prob=cfg.get("gray_scale_prob", 0.0),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(value: object) -> tuple[float, ...]:
    """Empty where it is no sequence of numbers."""
    if not isinstance(value, (tuple, list)) or not all(map(_is_number, value)):
        return ()
    return tuple(value)


def _is_range(value: object, most: float) -> bool:
    numbers = _numbers(value)
    return len(numbers) == 2 and 0 < numbers[0] <= numbers[1] <= most


def _is_jitter(value: object) -> bool:
    numbers = (value,) * 3 if _is_number(value) else _numbers(value)
    hue: Any = numbers[3] if len(numbers) == 4 else 0
    return len(numbers) in (3, 4) and all(n >= 0 for n in numbers) and hue <= 0.5  # type: ignore[operator]


def _is_share(value: object) -> bool:
    return _is_number(value) and 0 <= value <= 1  # type: ignore[operator]


_EXPECTED: dict[str, tuple[str, Callable[[object], bool]]] = {
    "scale": ("0 < low ≤ high ≤ 1", lambda x: _is_range(x, 1)),
    "ratio": ("0 < low ≤ high", lambda x: _is_range(x, math.inf)),
    "color_jitter": ("one, three or four numbers of 0 or more, hue at most 0.5", _is_jitter),
    "color_jitter_prob": ("0 to 1", _is_share),
    "gray_scale_prob": ("0 to 1", _is_share),
    "re_prob": ("0 to 1", _is_share),
    "re_count": ("a whole number of at least 1", lambda x: type(x) is int and x >= 1),
    "use_timm": ("True or False", lambda x: isinstance(x, bool)),
}
