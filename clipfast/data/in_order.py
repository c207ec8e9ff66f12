"""The order of an evaluation: that of the data, each sample once.

W ranks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class InOrder:
    """Whole batches, dealt to the ranks in runs that follow each other, so that the batches, and
    all ranks' samples in rank order, are those of one process. The last batch may be smaller, and a
    rank may have none.

    Args:
        samples: how many there are.
        batch_size: of one batch.
        rank, world_size: whose batches these are.
    """

    def __init__(self, samples: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.samples, self.batch_size = samples, batch_size
        batches = -(-samples // batch_size)
        self._first = batches * rank // world_size
        self.steps_per_epoch = batches * (rank + 1) // world_size - self._first

    def batch(self, epoch: int, step: int) -> NDArray[np.int64]:
        begin = (self._first + step) * self.batch_size
        return np.arange(begin, min(begin + self.batch_size, self.samples))

    def substitute(self, epoch: int, number: int, attempt: int) -> None:
        """An unusable sample is left out: another in its place would be counted twice."""

    def generator(self, epoch: int, number: int) -> None:
        """Nothing is left to chance."""
