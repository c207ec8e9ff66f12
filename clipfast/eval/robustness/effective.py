"""Effective robustness: accuracy under a shift beyond what that on the reference foretells.

M baseline models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import linregress

from clipfast.errors import UserError


@dataclass(frozen=True)
class Baseline:
    """β(x) = σ(slope · logit(x) + intercept): accuracy under the shift, expected from that on the
    reference.

    Attributes:
        slope, intercept: of the line in logits.
        points: (reference, shift) of the models that it was fitted on, as they were given.
    """

    slope: float
    intercept: float
    points: tuple[tuple[float, float], ...]

    @classmethod
    def fit(
        cls,
        reference: Sequence[float],
        shift: Sequence[float],
        *,
        reference_samples: int | None = None,
        shift_samples: int | None = None,
    ) -> Baseline:
        """The line of least squares through (logit(reference), logit(shift)).

        Args:
            reference: (M,) accuracies on the reference, in [0, 1].
            shift: (M,) the same models' under the shift.
            reference_samples, shift_samples: how many images these are of. Accuracies of 0 and 1,
                whose logits are infinite, are moved by half an image; without a number they are
                refused.

        Raises:
            UserError: fewer than two different accuracies on the reference, or one of 0 or 1.
            ValueError: lengths that differ.

        Source: Taori et al. 2020, arXiv 2007.00644, §2 and appendix; Recht et al. 2019,
            arXiv 1902.10811, for the line in logits (there probits).
        """
        if len(reference) != len(shift):
            raise ValueError(
                f"shift: expected as many accuracies as reference, {len(reference)}; "
                f"got {len(shift)}"
            )
        x_M = logit(_inside("reference", reference, reference_samples))
        y_M = logit(_inside("shift", shift, shift_samples))
        different = len(np.unique(x_M))
        if different < 2:
            raise UserError(
                "baseline: expected at least 2 models of different accuracy on the reference; "
                f"got {different}"
            )
        line = linregress(x_M, y_M)
        points = zip(map(float, reference), map(float, shift), strict=True)
        return cls(float(line.slope), float(line.intercept), tuple(points))

    def expected(self, reference: float) -> float:
        """β(reference); at 0 and 1 its limit."""
        if self.slope == 0:
            return float(expit(self.intercept))
        return float(expit(self.slope * logit(reference) + self.intercept))

    def effective(self, reference: float, shift: float) -> float:
        """ρ = shift − β(reference), in accuracy."""
        return shift - self.expected(reference)


def _inside(name: str, accuracies: Sequence[float], samples: int | None) -> NDArray[np.float64]:
    """Those of 0 and 1 moved by half a sample."""
    values = np.asarray(accuracies, np.float64)
    if samples is None:
        usable, which = (values > 0) & (values < 1), "inside of 0 and 1, or the number of images,"
    else:
        usable, which = (values >= 0) & (values <= 1), "from 0 to 1"
    if not usable.all():
        raise UserError(
            f"baseline: expected accuracies {which} on the {name}; got {values[~usable][0]:g}"
        )
    return values if samples is None else values.clip(0.5 / samples, 1 - 0.5 / samples)
