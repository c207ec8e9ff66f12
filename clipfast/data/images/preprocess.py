"""How a model wants its images: open_clip's preprocess configuration, without the size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from clipfast.data.images.normalize import CLIP_MEAN, CLIP_STD
from clipfast.errors import UserError

INTERPOLATIONS = ("bicubic", "bilinear", "random")
RESIZE_MODES = ("shortest", "longest", "squash")


@dataclass(frozen=True)
class View:
    """How an image is shown in evaluation; the default is CLIP's.

    Attributes:
        interpolation: "bicubic" or "bilinear", both with antialiasing.
        resize_mode: "shortest" resizes the short side to the model's size and shows the centre,
            "longest" the long side and pads with black, "squash" both sides.
    """

    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


@dataclass(frozen=True)
class Preprocess:
    """Attributes:
    mean, std: of the channels, in units of the full range.
    interpolation, resize_mode: open_clip's names; "random" is bicubic in evaluation.
    """

    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"

    @classmethod
    def of(cls, raw: Mapping[str, Any], where: str) -> Preprocess:
        """From open_clip's JSON form; what is missing or null is CLIP's.

        Args:
            where: names it in errors.

        Raises:
            UserError: a value that is none of open_clip's, or a padding that is not black.
        """
        if raw.get("fill_color"):
            raise UserError(f"{where}: fill_color: expected 0, black; got {raw['fill_color']!r}")
        return cls().changed(where, **{f.name: raw.get(f.name) for f in fields(cls)})

    def changed(self, where: str, **changes: Any) -> Preprocess:
        """With the changes that are not None.

        Raises:
            UserError: as `of`.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        for name, value in given.items():
            expected, holds = _EXPECTED[name]
            if not holds(value):
                raise UserError(f"{where}: {name}: expected {expected}; got {value!r}")
            if name in ("mean", "std"):
                given[name] = tuple(map(float, value))
        return replace(self, **given)

    @property
    def view(self) -> View:
        bilinear = self.interpolation == "bilinear"
        return View("bilinear" if bilinear else "bicubic", self.resize_mode)


def _three(value: object, least: float) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 3
        and all(isinstance(x, (int, float)) and least < x < math.inf for x in value)
    )


_EXPECTED = {
    "mean": ("three finite numbers", lambda x: _three(x, -math.inf)),
    "std": ("three positive numbers", lambda x: _three(x, 0)),
    "interpolation": (f"one of {', '.join(INTERPOLATIONS)}", lambda x: x in INTERPOLATIONS),
    "resize_mode": (f"one of {', '.join(RESIZE_MODES)}", lambda x: x in RESIZE_MODES),
}
