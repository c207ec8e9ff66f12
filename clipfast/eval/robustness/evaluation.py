"""What a robustness evaluation comes to: models and their adaptations on a reference set and on its
shifts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from clipfast.errors import UserError
from clipfast.eval.robustness.effective import Baseline

logger = logging.getLogger("clipfast.eval")

Kind = Literal["zero-shot", "linear-probe", "baseline"]


@dataclass(frozen=True)
class RobustnessRow:
    """A model in one form of adaptation.

    Attributes:
        label: the model's; a zero-shot row and a probe's of the same label are of the same model.
        kind: "baseline" is a model that the line of expectation is fitted on.
        reference: accuracy in [0, 1].
        shifts: accuracy under each shift, in the table's order.
        effective: of their average; None where there is no baseline.
    """

    label: str
    kind: Kind
    reference: float
    shifts: tuple[float, ...]
    effective: float | None = None

    @property
    def average(self) -> float:
        """Over the shifts, each of equal weight."""
        return float(np.mean(self.shifts))


class Survival(NamedTuple):
    """What a linear probe adds to zero-shot, in accuracy.

    Attributes:
        label: the model's.
        reference: on the reference.
        shifts: under each shift.
    """

    label: str
    reference: float
    shifts: tuple[float, ...]

    @property
    def average(self) -> float:
        return float(np.mean(self.shifts))

    def sentence(self) -> str:
        """Whether the gain survives the shift, from the numbers as they are printed."""
        gain, under_shift = _points(self.reference), _points(self.average)
        count = len(self.shifts)
        where = "the shift" if count == 1 else f"average of the {count} shifts"
        numbers = f"{self.label}: the probe gives {gain:+.1f} points on the reference, "
        return f"{numbers}{under_shift:+.1f} on {where}: {_verdict(gain, under_shift)}"


@dataclass(frozen=True)
class RobustnessTable:
    """Attributes:
    reference: name of the reference set.
    shifts: names of its shifts.
    rows: in the order that they are shown.
    baseline: what accuracy on the reference foretells of the average over the shifts; None where
        too few models tell it.
    """

    reference: str
    shifts: tuple[str, ...]
    rows: tuple[RobustnessRow, ...]
    baseline: Baseline | None = None

    def survivals(self) -> list[Survival]:
        """Of every model that is there zero-shot and with a probe."""
        zero_shot = {row.label: row for row in self.rows if row.kind == "zero-shot"}
        return [
            Survival(
                probe.label,
                probe.reference - zero_shot[probe.label].reference,
                tuple(np.subtract(probe.shifts, zero_shot[probe.label].shifts).tolist()),
            )
            for probe in self.rows
            if probe.kind == "linear-probe" and probe.label in zero_shot
        ]


def robustness_table(
    reference: str,
    shifts: Sequence[str],
    rows: Sequence[RobustnessRow],
    *,
    reference_samples: int | None = None,
    shift_samples: int | None = None,
) -> RobustnessTable:
    """The rows with their effective robustness, by the line through those that are baselines.

    Args:
        reference: its name.
        shifts: their names. Those of one name, such as a corruption's severities, become one shift
            by their mean.
        rows: in the order that they are shown.
        reference_samples, shift_samples: how many images; see `Baseline.fit`.

    Returns:
        Without a baseline where there are fewer than two of different accuracy, which is logged.

    Raises:
        ValueError: a row of another number of shifts.
    """
    names = tuple(dict.fromkeys(shifts))
    merged = [replace(row, shifts=_merged(row, shifts, names)) for row in rows]
    baselines = [row for row in merged if row.kind == "baseline"]
    try:
        line = Baseline.fit(
            [row.reference for row in baselines],
            [row.average for row in baselines],
            reference_samples=reference_samples,
            shift_samples=shift_samples,
        )
    except UserError as error:
        logger.warning(f"{reference}: no effective robustness: {error}")
        return RobustnessTable(reference, names, tuple(merged))
    told = [replace(row, effective=line.effective(row.reference, row.average)) for row in merged]
    return RobustnessTable(reference, names, tuple(told), line)


def _merged(row: RobustnessRow, shifts: Sequence[str], names: Sequence[str]) -> tuple[float, ...]:
    if len(row.shifts) != len(shifts):
        raise ValueError(
            f"{row.label}: expected accuracies under {len(shifts)} shifts; got {len(row.shifts)}"
        )
    under = list(zip(shifts, row.shifts, strict=True))
    return tuple(float(np.mean([a for shift, a in under if shift == name])) for name in names)


def _points(difference: float) -> float:
    """In hundredths, as printed; no -0.0."""
    return round(100 * difference, 1) + 0.0


def _verdict(gain: float, under_shift: float) -> str:
    if gain <= 0:
        return "there is no gain to survive"
    if under_shift <= 0:
        return "the gain does not survive"
    if under_shift < gain:
        return f"{under_shift / gain:.0%} of the gain survives"
    return "the gain survives"
