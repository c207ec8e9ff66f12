"""Which tokens form a sequence: what every backend of attention is told beside q, k and v.

B sequences, T tokens of all, L tokens of one.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Sequences(NamedTuple):
    """Sequences laid end to end. q has (T_q, H, D), k and v (T_k, H, D).

    Attributes:
        cu_q: (B+1,) int32, sequence b has the query rows [cu_q[b], cu_q[b+1]); None where every
            sequence has max_q of them.
        cu_k: (B+1,) int32, the same for keys; None where every sequence has max_k of them.
        batch: B.
        max_q: the longest sequence of queries; may be larger than that.
        max_k: the longest sequence of keys; may be larger than that.
        causal: query i of L_q sees the keys j ≤ i + L_k − L_q of L_k: the last query sees all.
        scale: of the products, before the softmax.
    """

    cu_q: Tensor | None
    cu_k: Tensor | None
    batch: int
    max_q: int
    max_k: int
    causal: bool
    scale: float

    def bounds(self) -> list[tuple[int, int, int, int]]:
        """Per sequence, its first query row and the one after its last, and the same for keys."""
        q = _starts(self.cu_q, self.batch, self.max_q)
        k = _starts(self.cu_k, self.batch, self.max_k)
        return list(zip(q[:-1], q[1:], k[:-1], k[1:], strict=True))


def _starts(cu: Tensor | None, batch: int, length: int) -> list[int]:
    if cu is None:
        return [b * length for b in range(batch + 1)]
    starts: list[int] = cu.tolist()
    return starts


def longest(cu: Tensor | None) -> int:
    """The longest sequence; on a GPU this waits for it."""
    return 0 if cu is None or len(cu) < 2 else int(cu.diff().max())
