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


def conditions(q, k, v, d_out, sequences):
    """Name to condition number (tolerance.py) of the answer: what moves with scores and products.

    A score q·k is a sum whose rounding, as that of the inputs, goes with Σ|q_d k_d|; a probability
    p = e^{s − lse} moves by as much as its exponent, times p. A backward that computes s anew has
    another rounding in it than in the log-sum-exp that the forward saved.
    """
    found = dict.fromkeys(Answer._fields, 0.0)
    q, k, v, d_out = (x.detach().double().transpose(0, 1) for x in (q, k, v, d_out))
    for first_q, last_q, first_k, last_k in sequences.bounds():
        if first_q == last_q or first_k == last_k:
            continue
        rows, columns = slice(first_q, last_q), slice(first_k, last_k)
        q_HLD, d_HLD, k_HLD, v_HLD = q[:, rows], d_out[:, rows], k[:, columns], v[:, columns]
        p = _probabilities(q_HLD, k_HLD, sequences)
        exponent = abs(sequences.scale) * _product_of_sizes(q_HLD, k_HLD.mT)
        lse = (p * exponent).sum(2, keepdim=True)
        p_moves = p * (exponent + lse)
        d_p, d_p_moves = d_HLD @ v_HLD.mT, _product_of_sizes(d_HLD, v_HLD.mT)
        d_s = d_p - (p * d_p).sum(2, keepdim=True)
        d_s_moves = d_p_moves + (p * d_p_moves).sum(2, keepdim=True)
        d_s_moves = abs(sequences.scale) * (p_moves * d_s.abs() + p * d_s_moves)
        moves = Answer(
            _product_of_sizes(p_moves, v_HLD),
            lse,
            _product_of_sizes(d_s_moves, k_HLD),
            _product_of_sizes(d_s_moves.mT, q_HLD),
            _product_of_sizes(p_moves.mT, d_HLD),
        )
        for name, x in moves._asdict().items():
            found[name] = max(found[name], x.max().item())
    return found


def _probabilities(q_HLD, k_HLD, sequences):
    """Zeros for a query that sees no key."""
    s = sequences.scale * q_HLD @ k_HLD.mT
    if sequences.causal:
        seen = torch.ones(s.shape[1:], dtype=torch.bool).tril(s.shape[2] - s.shape[1])
        s = s.masked_fill(~seen, -torch.inf)
    return s.softmax(dim=2).nan_to_num(0.0)


def _product_of_sizes(a, b):
    return a.abs() @ b.abs()
