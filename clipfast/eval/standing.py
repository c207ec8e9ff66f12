"""How the right keys of each query stand among all keys: what recall, ranks and accuracy are
counted from.

n queries of a rank, N keys, D features.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from clipfast_kernels import gathered_similarity
from clipfast_kernels.distributed import gathered
from numpy.typing import NDArray
from torch import Tensor


class Standing(NamedTuple):
    """Of each query's best right key. Of tied keys each comes first equally often, so that a model
    that finds all alike is right by chance alone.

    Attributes:
        above: (n,) int64, how many keys are more similar to the query.
        tied: (n,) int64, how many are as similar, itself among them.
        right: (n,) int64, how many of the tied ones are right.
    """

    above: Tensor
    tied: Tensor
    right: Tensor

    def of_all_ranks(self, group: dist.ProcessGroup | None) -> Standing:
        """All ranks' queries, in rank order. A rank may have none."""
        return Standing(*(gathered("standing", x, group, ragged=True).wait() for x in self))

    def hits(self, k: int) -> NDArray[np.float64]:
        """(n,) the chance that a right key is among the k most similar: 1 − C(t−r, j) / C(t, j)
        for j places left to t tied keys of which r are right."""
        above, tied, right = self._arrays()
        left = tied - np.clip(k - above, 0, tied)
        missed = np.ones(len(above))
        for i in range(right.max(initial=0)):
            missed *= np.where(i < right, np.maximum(left - i, 0) / np.maximum(tied - i, 1), 1)
        return 1 - missed

    def recall(self, k: int) -> float:
        """The share of queries with a right key among the k most similar."""
        return float(self.hits(k).mean())

    def mean_rank(self) -> float:
        """From 1 on; the first right one of tied keys stands where it does on average."""
        return float(self._ranks().mean())

    def median_rank(self) -> float:
        """From 1 on, rounded down, as open_clip gives it."""
        return float(np.floor(np.median(self._ranks())))

    def _ranks(self) -> NDArray[np.float64]:
        above, tied, right = self._arrays()
        return above + (tied + 1) / (right + 1)

    def _arrays(self) -> list[NDArray[np.int64]]:
        return [x.cpu().numpy() for x in self]


def standing_of(queries: Tensor, keys: Tensor, right: Tensor) -> Standing:
    """above_i = |{j: S_ij > S_i,right(i)}|, tied_i = |{j: S_ij = S_i,right(i)}|, of
    S = queries · keysᵀ.

    Args:
        queries: (n, D), none or more.
        keys: (N, D).
        right: (n,) int64, each query's right key.

    Returns:
        Where the right key's similarity is NaN all keys are above it; a NaN elsewhere is tied.

    Memory: a panel of similarities.
    """
    if not len(queries):
        return Standing(*(right.new_empty(0) for _ in Standing._fields))
    above = gathered_similarity(queries, keys, positives=right).rank
    below = gathered_similarity(queries, keys, scale=-1.0, positives=right).rank
    assert above is not None
    assert below is not None
    tied = (len(keys) - above - below).clamp(min=1)
    return Standing(above, tied, torch.ones_like(tied))
