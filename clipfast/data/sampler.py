"""Which samples form step s of epoch e: a pure function of (seed, e, s), whatever reads them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Sampler:
    """Samples in an order of the epoch's own, each once before any comes again; the last steps wrap
    around to the epoch's beginning, so that all steps are full.

    Attributes:
        samples: how many there are.
        batch_size: samples per step.
        steps_per_epoch: of one epoch.
        seed: with the epoch, fixes the order.
    """

    samples: int
    batch_size: int
    steps_per_epoch: int
    seed: int

    @staticmethod
    def of(
        samples: int, batch_size: int, workers: int, seed: int, epoch_samples: int | None = None
    ) -> Sampler:
        """open_clip's epoch: batches rounded up, then up to a multiple of the workers.

        Args:
            epoch_samples: how many samples an epoch has instead of all; fewer leave some out, other
                ones in each epoch, more begin anew.
        """
        batches = -(-(epoch_samples or samples) // batch_size)
        rounded = -(-batches // max(1, workers)) * max(1, workers)
        return Sampler(samples, batch_size, rounded, seed)

    def batch(self, epoch: int, step: int) -> np.ndarray:
        """(batch_size,) int64 sample numbers."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return _order(self.seed, epoch, self.samples)[places % self.samples]

    def substitute(self, epoch: int, number: int, attempt: int) -> int:
        """The sample that takes the place of an unreadable one, `attempt` = 1, 2, …"""
        return int(self.generator(epoch, number, attempt).integers(self.samples))

    def generator(self, epoch: int, number: int, attempt: int = 0) -> np.random.Generator:
        """The random numbers of one sample in one epoch, for its augmentation."""
        return np.random.default_rng((self.seed, epoch, number, attempt))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, samples: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(samples)
