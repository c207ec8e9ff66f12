"""Attention as the formula stands: one sequence at a time, differentiable, any device.

Every other backend is measured against this one in float64. H heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast_kernels.ops.attention.sequences import Sequences


def unusable(*tensors: Tensor) -> list[str]:
    return []


def attention(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """out (T_q, H, D) and the log-sum-exp of each query's scores (H, T_q).

    A query that sees no key gets zeros, and −inf.
    """
    outs, lses = [], []
    for first_q, last_q, first_k, last_k in sequences.bounds():
        rows, columns = last_q - first_q, last_k - first_k
        q_HLD, k_HLD, v_HLD = (
            x.transpose(0, 1) for x in (q[first_q:last_q], k[first_k:last_k], v[first_k:last_k])
        )
        scores = sequences.scale * (q_HLD @ k_HLD.transpose(1, 2))
        if sequences.causal:
            seen = torch.ones(rows, columns, dtype=torch.bool, device=q.device)
            scores = scores.masked_fill(~seen.tril(columns - rows), -torch.inf)
        lse = scores.logsumexp(dim=2)
        # exp(−inf − −inf) would be NaN.
        p = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0)[:, :, None])
        outs.append((p.to(v.dtype) @ v_HLD).transpose(0, 1))
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses, dim=1)
