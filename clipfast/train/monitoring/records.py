"""What a step measured, and means over steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class StepRecord:
    """One step of all ranks; times in seconds.

    Attributes:
        loss: the total, of all ranks.
        logit_scale: the multiplier that the loss used.
        lr: of groups that have no scale of their own.
        data_time: waiting for the batch, part of `batch_time`.
        batch_time: from the end of the step before to the end of this one.
        parts: what `loss` is the sum of, by open_clip's names.
        grad_norm: before clipping, where the engine computed it.
        skipped: the weights stayed as they were, since the loss or its gradients were not finite.
    """

    loss: float
    logit_scale: float
    lr: float
    data_time: float
    batch_time: float
    parts: dict[str, float] = field(default_factory=dict)
    grad_norm: float | None = None
    skipped: bool = False


@dataclass(slots=True)
class Window:
    """Sums over the steps since it was last emptied. Losses and norms are of the steps taken."""

    steps: int = 0
    skipped: int = 0
    data_time: float = 0.0
    batch_time: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, record: StepRecord) -> None:
        self.steps += 1
        self.skipped += record.skipped
        self.data_time += record.data_time
        self.batch_time += record.batch_time
        if record.skipped:
            return
        self._add("loss", record.loss)
        for name, value in record.parts.items():
            self._add(name, value)
        if record.grad_norm is not None:
            self._add("grad_norm", record.grad_norm)

    def means(self) -> dict[str, float]:
        """Of losses, and of the gradients' norm."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    @property
    def data_wait(self) -> float:
        """The share of the time that went into waiting for data."""
        return self.data_time / self.batch_time if self.batch_time else 0.0

    def clear(self) -> None:
        self.steps = self.skipped = 0
        self.data_time = self.batch_time = 0.0
        self.sums.clear()
        self.counts.clear()

    def _add(self, name: str, value: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value
        self.counts[name] = self.counts.get(name, 0) + 1


def window_of(records: Iterable[StepRecord]) -> Window:
    window = Window()
    for record in records:
        window.add(record)
    return window


def finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
