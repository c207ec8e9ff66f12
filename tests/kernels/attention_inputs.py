"""Sequences for the tests of attention, and the reference's answers for them."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from clipfast_kernels.ops.attention import reference
from clipfast_kernels.ops.attention.sequences import Sequences
from torch import Tensor


class Answer(NamedTuple):
    """An output, its log-sum-exps, and the gradients for a given gradient of the output."""

    out: Tensor
    lse: Tensor
    d_q: Tensor
    d_k: Tensor
    d_v: Tensor


def packed(lengths, lengths_k=None, *, causal=False, scale=0.125):
    """Sequences of these lengths, laid end to end."""
    lengths_k = lengths if lengths_k is None else lengths_k
    cu_q, cu_k = (
        torch.tensor([0, *itertools.accumulate(x)], dtype=torch.int32) for x in (lengths, lengths_k)
    )
    longest = max(lengths), max(lengths_k)
    return Sequences(cu_q, cu_k, len(lengths), *longest, causal, scale)


def batched(batch, length, length_k=None, *, causal=False, scale=0.125):
    """`batch` sequences of one length."""
    length_k = length if length_k is None else length_k
    return Sequences(None, None, batch, length, length_k, causal, scale)


def tensors(sequences, heads, width, dtype=torch.float32, *, seed=0, size=1.0):
    """q, k, v and d_out for these sequences, equal in all dtypes up to rounding.

    q, k and v are slices of one tensor (T, 3, H, D) where queries and keys are as many.
    """
    bounds = sequences.bounds()
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (size * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

    rows, columns = bounds[-1][1], bounds[-1][3]
    d_out = draw(rows, heads, width)
    if rows == columns:
        return (*draw(rows, 3, heads, width).unbind(1), d_out)
    return draw(rows, heads, width), *draw(columns, 2, heads, width).unbind(1), d_out


def reference_answer(q, k, v, d_out, sequences, dtype=None):
    """The reference's answer, computed in `dtype` (the inputs' where None)."""
    leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in (q, k, v)]
    out, lse = reference.attention(*leaves, sequences)
    out.backward(d_out.to(out.dtype))
    return Answer(out.detach(), lse.detach(), *(x.grad for x in leaves))
