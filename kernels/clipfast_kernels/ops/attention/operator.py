"""Attention as a pair of torch operators, so that torch.compile takes it whole, and its gradient.

One operator serves every way in which q, k and v may lie in memory: `packs` is [qkv (T, 3, H, D)],
[q (T_q, H, D), kv (T_k, 2, H, D)] or [q, k, v], and the gradients come in the same packs, written
in place by the backend. T tokens, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from clipfast_kernels.ops.attention.sequences import Sequences, longest
from clipfast_kernels.ops.panel import compute_dtype

_FORWARD = "clipfast_kernels::attention_fwd"
_BACKWARD = "clipfast_kernels::attention_bwd"

_SEQUENCES = (
    "Tensor? cu_q, Tensor? cu_k, SymInt batch, SymInt? max_q, SymInt? max_k, bool causal,"
    " float scale, str backend"
)
torch.library.define(_FORWARD, f"(Tensor[] packs, {_SEQUENCES}) -> (Tensor out, Tensor lse)")
torch.library.define(
    _BACKWARD, f"(Tensor d_out, Tensor[] packs, Tensor out, Tensor lse, {_SEQUENCES}) -> Tensor[]"
)


def views(packs: Sequence[Tensor]) -> list[Tensor]:
    """q, k and v, (T, H, D) each."""
    parts = [list(x.unbind(1)) if x.ndim == 4 else [x] for x in packs]
    return [x for pack in parts for x in pack]


def _module(backend: str) -> ModuleType:
    from clipfast_kernels.ops.attention.api import BACKENDS

    return BACKENDS.modules[backend]()


def _sequences(
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    batch: int,
    max_q: int | None,
    max_k: int | None,
    causal: bool,
    scale: float,
) -> Sequences:
    max_q = longest(cu_q) if max_q is None else max_q
    max_k = longest(cu_k) if max_k is None else max_k
    return Sequences(cu_q, cu_k, batch, max_q, max_k, causal, scale)


@torch.library.impl(_FORWARD, "CompositeExplicitAutograd")
def _forward(packs: list[Tensor], *arguments: Any) -> tuple[Tensor, Tensor]:
    *where, backend = arguments
    with torch.autocast(packs[0].device.type, enabled=False):
        out, lse = _module(backend).forward(*views(packs), _sequences(*where))
    return out, lse


@torch.library.impl(_BACKWARD, "CompositeExplicitAutograd")
def _backward(
    d_out: Tensor, packs: list[Tensor], out: Tensor, lse: Tensor, *arguments: Any
) -> list[Tensor]:
    *where, backend = arguments
    gradients = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in packs]
    with torch.autocast(d_out.device.type, enabled=False):
        _module(backend).backward(
            d_out.contiguous(), *views(packs), out, lse, *views(gradients), _sequences(*where)
        )
    return gradients


@torch.library.register_fake(_FORWARD)
def _(packs: list[Tensor], *_: Any) -> tuple[Tensor, Tensor]:
    q = views(packs)[0]
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=compute_dtype(q))


@torch.library.register_fake(_BACKWARD)
def _(d_out: Tensor, packs: list[Tensor], *_: Any) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in packs]


class Attention(torch.autograd.Function):
    """The operators' gradient: an autograd.Function, which takes half the time per call that a
    gradient registered with the operator does (0.2 ms against 0.37, forward and backward)."""

    @staticmethod
    def forward(ctx: Any, arguments: tuple[Any, ...], *packs: Tensor) -> Tensor:
        out, lse = torch.ops.clipfast_kernels.attention_fwd(list(packs), *arguments)
        cu_q, cu_k, *ctx.rest = arguments
        ctx.save_for_backward(*packs, out, lse, cu_q, cu_k)
        result: Tensor = out
        return result

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Any, ...]:
        *packs, out, lse, cu_q, cu_k = ctx.saved_tensors
        return None, *_Gradient.apply((cu_q, cu_k, *ctx.rest), d_out, out, lse, *packs)


class _Gradient(torch.autograd.Function):
    """Has none of its own, and says so."""

    @staticmethod
    def forward(ctx: Any, arguments: tuple[Any, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        d_out, out, lse, *packs = tensors
        found = torch.ops.clipfast_kernels.attention_bwd(d_out, packs, out, lse, *arguments)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise NotImplementedError(
            "attention: the gradient of its gradient is not implemented; backend='reference' has it"
        )
