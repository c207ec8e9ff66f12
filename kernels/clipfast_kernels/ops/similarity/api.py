"""`gathered_similarity`: what retrieval and hard-negative mining want to know of all similarities.

Shapes: n local queries, N keys of all ranks, D features.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from clipfast_kernels.dispatch import Op
from clipfast_kernels.distributed import GatheredFeatures, alone_is_none, gathered
from clipfast_kernels.ops.arguments import check_integers, check_like, check_matrix, check_scalar
from clipfast_kernels.ops.similarity import operator as _operator  # noqa: F401  registers it


def _cpu() -> ModuleType:
    from clipfast_kernels.ops.similarity import cpu

    return cpu


def _torch() -> ModuleType:
    from clipfast_kernels.ops.similarity import panels

    return panels


def _triton() -> ModuleType:
    from clipfast_kernels.ops.similarity import triton

    return triton


def _reference() -> ModuleType:
    from clipfast_kernels.ops.similarity import reference

    return reference


def _trials() -> ModuleType:
    from clipfast_kernels.ops.similarity import trials

    return trials


BACKENDS = Op(
    name="gathered_similarity",
    modules={"cpu": _cpu, "torch": _torch, "triton": _triton, "reference": _reference},
    planned={"cuda": "clipfast has no CUDA kernel for this op: its products are the vendor's"},
    trials=_trials,
)


class Similarity(NamedTuple):
    """Of S = scale · queries · keysᵀ, by query; float32 (float64 for float64 inputs).

    Attributes:
        logsumexp: (n,) log Σ_j e^{S_ij}; NaN if any S_ij is.
        positive: (n,) the similarity with the query's positive; None without `positives`.
        rank: (n,) int64, 0-based: the number of keys strictly more similar than the positive, ties
            thus in the query's favour. N where the positive's similarity is NaN.
        topk_values: (n, topk) the largest similarities in falling order; None for topk=0.
        topk_indices: (n, topk) int64 their global key indices; of equal similarities the lowest
            index comes first. A similarity that is NaN is left out; places that nothing is left
            for hold −inf and −1.
    """

    logsumexp: Tensor
    positive: Tensor | None
    rank: Tensor | None
    topk_values: Tensor | None
    topk_indices: Tensor | None


def gathered_similarity(
    queries: Tensor,
    keys: Tensor | GatheredFeatures,
    *,
    scale: Tensor | float = 1.0,
    positives: Tensor | None = None,
    topk: int = 0,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
) -> Similarity:
    """Per query, of S = scale · queries · keysᵀ: log Σ e^S, the positive, its rank, the top k.

    Equivalent PyTorch::

        S = scale * queries @ keys.T
        positive = S.gather(1, positives[:, None])
        S.logsumexp(1), positive[:, 0], (S > positive).sum(1), *S.topk(topk)

    Args:
        queries: (n, D) this rank's, float32, float64, float16 or bfloat16, taken as they are: for
            cosines normalise them.
        keys: (M, D) this rank's, of the same dtype and on the same device, or their `start_gather`
            handle. Ranks may have different n and M.
        scale: a number or a tensor of one element.
        positives: (n,) int64 each query's right key, by its index among all ranks' keys in rank
            order; or None.
        topk: how many of the most similar keys to return; 0 for none.
        group: a torch.distributed process group, every rank of which calls this; None is this
            process alone.
        backend: "auto", or a backend's name; `backends("gathered_similarity")` lists them.

    Returns:
        Similarity(logsumexp, positive, rank, topk_values, topk_indices). It has no gradient.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range.
        RuntimeError: the backend asked for cannot serve this call.

    Memory: the keys of all ranks, one panel of similarities, O(n·topk); "reference" several n×N
    arrays. One product of n×N×D.

    Source: recall at k and the median rank as in Radford et al. 2021, arXiv 2103.00020, table 13.
    """
    q = check_matrix("queries", queries)
    k = check_matrix("keys", keys)
    if k.shape[1] != q.shape[1]:
        raise ValueError(f"keys: expected queries' width {q.shape[1]}; got {k.shape[1]}")
    check_like("keys", k, "queries", q)
    s = check_scalar("scale", scale, "queries", q)
    check_integers("positives", positives, "queries", q)
    if not isinstance(topk, int) or isinstance(topk, bool):
        raise TypeError(f"topk: expected an integer; got {type(topk).__name__}")
    group = alone_is_none(group)
    chosen = BACKENDS.choose(backend, q, k, s, positives)
    everyone = gathered("keys", keys, group, ragged=True).wait()
    if not 0 <= topk <= len(everyone):
        raise ValueError(f"topk: expected 0 to {len(everyone)}, the number of keys; got {topk}")
    lse, positive, rank, values, indices = torch.ops.clipfast_kernels.gathered_similarity(
        q.detach().contiguous(),
        everyone.contiguous(),
        s.detach(),
        None if positives is None else positives.contiguous(),
        topk,
        chosen,
    )
    return Similarity(
        lse,
        None if positives is None else positive,
        None if positives is None else rank,
        values if topk else None,
        indices if topk else None,
    )
