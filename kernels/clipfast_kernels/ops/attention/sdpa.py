"""Attention by torch's own kernels, with torch's own autograd, on any device.

Sequences of one length go to `scaled_dot_product_attention` as they are. Packed ones go to torch's
attention over packed sequences where it serves them (16 bits, NVIDIA from compute capability 8.0),
and are padded elsewhere. B sequences, L tokens of the longest, T tokens of all.
"""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from clipfast_kernels.ops.attention.sequences import Sequences

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None  # type: ignore[assignment]

# Newer releases say causal by a window, the first one by a flag.
_WINDOWED = varlen_attn is not None and "window_size" in inspect.signature(varlen_attn).parameters


def unusable(*tensors: Tensor) -> list[str]:
    return []


def attention(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> Tensor:
    """(T_q, H, D), differentiable."""
    if sequences.cu_q is None and sequences.cu_k is None:
        return _of_equal_lengths(q, k, v, sequences)
    cu_q, cu_k = _bounds(sequences, q.device)
    if _packed_unusable(q) is None:
        how: dict[str, Any] = {"scale": sequences.scale}
        if _WINDOWED:
            how["window_size"] = (-1, 0) if sequences.causal else (-1, -1)
        else:
            how["is_causal"] = sequences.causal
        longest = max(sequences.max_q, 1), max(sequences.max_k, 1)
        out: Any = varlen_attn(q, k, v, cu_q, cu_k, *longest, **how)
        return cast(Tensor, out)
    return _padded(q, k, v, cu_q, cu_k, sequences)


def _packed_unusable(q: Tensor) -> str | None:
    if varlen_attn is None:
        return "this torch has no attention over packed sequences"
    if not q.is_cuda or torch.version.hip is not None:
        return "torch's attention over packed sequences is for NVIDIA GPUs"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return "torch's attention over packed sequences takes 16 bits"
    if torch.cuda.get_device_capability(q.device) < (8, 0):
        return "torch's attention over packed sequences needs compute capability 8.0"
    return None


def _of_equal_lengths(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> Tensor:
    batch = sequences.batch
    q_BHLD, k_BHLD, v_BHLD = (
        x.unflatten(0, (batch, -1) if len(x) else (batch, 0)).transpose(1, 2) for x in (q, k, v)
    )
    rows, columns = q_BHLD.shape[2], k_BHLD.shape[2]
    mask = None
    if sequences.causal and rows != columns:
        # torch aligns a causal mask at the beginning, this op at the end.
        mask = torch.ones(rows, columns, dtype=torch.bool, device=q.device).tril(columns - rows)
    out = _sdpa(q_BHLD, k_BHLD, v_BHLD, sequences, mask)
    return out.transpose(1, 2).flatten(0, 1)


def _padded(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, sequences: Sequences
) -> Tensor:
    places_q = _places(cu_q, len(q), sequences.max_q)
    places_k = places_q if cu_q is cu_k else _places(cu_k, len(k), sequences.max_k)
    q_BHLD = _pad(q, places_q, sequences.batch, sequences.max_q)
    k_BHLD, v_BHLD = (_pad(x, places_k, sequences.batch, sequences.max_k) for x in (k, v))
    if sequences.causal and cu_q is cu_k:
        # Padding follows every real token, so the causal mask hides it.
        out = _sdpa(q_BHLD, k_BHLD, v_BHLD, sequences, None)
    else:
        lengths_q, lengths_k = cu_q.diff(), cu_k.diff()
        column = torch.arange(sequences.max_k, device=q.device)
        end = lengths_k[:, None]  # of the keys that a query sees
        if sequences.causal:
            row = torch.arange(sequences.max_q, device=q.device)
            end = torch.minimum(end, row + 1 + (lengths_k - lengths_q)[:, None])
        seen = column < end[:, :, None]
        out = _sdpa(q_BHLD, k_BHLD, v_BHLD, sequences, seen[:, None])
    return out.transpose(1, 2).flatten(0, 1).index_select(0, places_q)


def _sdpa(
    q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor, sequences: Sequences, mask: Tensor | None
) -> Tensor:
    if k_BHLD.shape[2] == 0:
        return q_BHLD * 0 + (k_BHLD.sum() + v_BHLD.sum())  # zeros that autograd can follow
    out = F.scaled_dot_product_attention(
        q_BHLD,
        k_BHLD,
        v_BHLD,
        attn_mask=mask,
        is_causal=sequences.causal and mask is None,
        scale=sequences.scale,
    )
    # A query that sees no key: zeros, whatever the kernel behind SDPA makes of it.
    return out if mask is None else out.masked_fill(~mask.any(dim=-1, keepdim=True), 0)


def _bounds(sequences: Sequences, device: torch.device) -> tuple[Tensor, Tensor]:
    def of(cu: Tensor | None, length: int) -> Tensor:
        if cu is not None:
            return cu
        starts = torch.arange(sequences.batch + 1, device=device, dtype=torch.int32)
        return starts * length

    return of(sequences.cu_q, sequences.max_q), of(sequences.cu_k, sequences.max_k)


def _places(cu: Tensor, tokens: int, max_length: int) -> Tensor:
    """(T,) each token's row in the padded (B · L) array."""
    starts = cu[:-1].long()
    padding_before = torch.arange(len(starts), device=cu.device) * max_length - starts
    row = torch.arange(tokens, device=cu.device)
    lengths = cu.diff()
    return row + padding_before.repeat_interleave(lengths, output_size=tokens)


def _pad(x: Tensor, places: Tensor, batch: int, max_length: int) -> Tensor:
    """(T, H, D) -> (B, H, L, D)."""
    padded = x.new_zeros(batch * max_length, *x.shape[1:]).index_copy(0, places, x)
    return padded.unflatten(0, (batch, max_length)).transpose(1, 2)
