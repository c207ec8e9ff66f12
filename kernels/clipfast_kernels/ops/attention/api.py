"""`attention_qkv`, `attention_kv`, `attention`: softmax attention, packed or of equal lengths.

B sequences, L tokens of one, T tokens of all, H heads, D head width.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from clipfast_kernels.dispatch import Op
from clipfast_kernels.ops.arguments import check_device, check_floats, check_like
from clipfast_kernels.ops.attention import operator as _operator
from clipfast_kernels.ops.attention.sequences import Sequences, longest
from clipfast_kernels.ops.attention.trials import length_class
from clipfast_kernels.verdicts import MEASURED_DEVICES


def _cpu() -> ModuleType:
    from clipfast_kernels.ops.attention import cpu

    return cpu


def _torch() -> ModuleType:
    from clipfast_kernels.ops.attention import sdpa

    return sdpa


def _flash_attn() -> ModuleType:
    from clipfast_kernels.ops.attention import flash_attn

    return flash_attn


def _triton() -> ModuleType:
    from clipfast_kernels.ops.attention import triton

    return triton


def _cuda() -> ModuleType:
    from clipfast_kernels.ops.attention import cuda

    return cuda


def _reference() -> ModuleType:
    from clipfast_kernels.ops.attention import reference

    return reference


def _trials() -> ModuleType:
    from clipfast_kernels.ops.attention import trials

    return trials


BACKENDS = Op(
    name="attention",
    modules={
        "cpu": _cpu,
        "torch": _torch,
        "flash_attn": _flash_attn,
        "cuda": _cuda,
        "triton": _triton,
        "reference": _reference,
    },
    planned={},
    trials=_trials,
)

# These bring their own autograd; the others are kernels behind our operator.
_DIFFERENTIABLE = ("torch", "flash_attn", "reference")


def attention_qkv(
    qkv: Tensor,
    cu_seqlens: Tensor | None = None,
    *,
    max_seqlen: int | None = None,
    causal: bool = False,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """softmax(scale · q·kᵀ + mask)·v per sequence and head, from one tensor of q, k and v.

    Equivalent PyTorch, for sequences of equal length::

        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, L, D)
        F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale).transpose(1, 2)

    Args:
        qkv: (T, 3, H, D) sequences laid end to end, or (B, L, 3, H, D) without `cu_seqlens`;
            float32, float64, float16 or bfloat16. Read where it lies when contiguous.
        cu_seqlens: (B+1,) int32 where each sequence begins, 0 first and T last, as flash-attn has
            it. Sequences may be empty. The CPU checks the numbers, a GPU trusts them.
        max_seqlen: the longest sequence, or more. None has it found, for which a GPU must wait.
        causal: token i sees the tokens 0 to i of its sequence.
        scale: of the products before the softmax; None is 1/√D.
        backend: "auto", or a backend's name; `backends("attention")` lists them.

    Returns:
        (T, H, D), or (B, L, H, D), of qkv's dtype. Its gradient comes as one tensor like qkv.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device.
        RuntimeError: the backend asked for cannot serve the call.

    Memory: for the backward the output and H·T log-sum-exps; no L×L array ("reference" and, for
    some shapes, "torch" have them).

    Source: Dao et al. 2022, arXiv 2205.14135; Dao 2023, arXiv 2307.08691.
    """
    check_floats("qkv", qkv)
    _check_shape("qkv", qkv, 3, cu_seqlens)
    cu_q = _check_bounds("cu_seqlens", cu_seqlens, "qkv", qkv)
    batch, length = _lengths("max_seqlen", cu_q, qkv, max_seqlen)
    where = cu_q, cu_q, batch, length, length, causal, _scale(scale, qkv)
    return _call([_flat(qkv, 4)], where, backend).view(*qkv.shape[:-3], *qkv.shape[-2:])


def attention_kv(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    *,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    causal: bool = False,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """`attention` with keys and values in one tensor, and their gradient in one.

    Args:
        q: (T_q, H, D) with `cu_seqlens_q`, or (B, L_q, H, D).
        kv: (T_k, 2, H, D) with `cu_seqlens_k`, or (B, L_k, 2, H, D).
        cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, scale, backend: as in
            `attention`.

    Returns:
        (T_q, H, D), or (B, L_q, H, D).

    Raises, Memory, Source: as `attention`.
    """
    check_floats("q", q)
    check_floats("kv", kv)
    _check_shape("q", q, None, cu_seqlens_q)
    _check_shape("kv", kv, 2, cu_seqlens_k if cu_seqlens_k is not None else cu_seqlens_q)
    _check_heads("kv", kv, q)
    cu_q = _check_bounds("cu_seqlens_q", cu_seqlens_q, "q", q)
    cu_k = _check_bounds("cu_seqlens_k", cu_seqlens_k, "kv", kv, cu_q)
    batch, length_q = _lengths("max_seqlen_q", cu_q, q, max_seqlen_q)
    batch_k, length_k = _lengths("max_seqlen_k", cu_k, kv, max_seqlen_k)
    _check_batch("kv", batch_k, batch)
    where = cu_q, cu_k, batch, length_q, length_k, causal, _scale(scale, q)
    return _call([_flat(q, 3), _flat(kv, 4)], where, backend).view(q.shape)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    *,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    causal: bool = False,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """softmax(scale · q·kᵀ + mask)·v per sequence and head.

    The causal mask is aligned at the end: query i of L_q sees the keys j ≤ i + L_k − L_q, so the
    last query sees all of them. For L_q = 2, L_k = 5::

        1 1 1 1 0
        1 1 1 1 1

    A query that sees no key gives zeros and passes no gradient on.

    Args:
        q: (T_q, H, D) with `cu_seqlens_q`, or (B, L_q, H, D); float32, float64, float16, bfloat16.
        k, v: (T_k, H, D) with `cu_seqlens_k`, or (B, L_k, H, D), of q's dtype and device.
        cu_seqlens_q: (B+1,) int32 where each sequence's queries begin, 0 first and T_q last.
        cu_seqlens_k: the same of the keys; None is `cu_seqlens_q`.
        max_seqlen_q, max_seqlen_k: the longest sequences, or more. None has them found, for which a
            GPU must wait.
        causal, scale, backend: as in `attention_qkv`.

    Returns:
        (T_q, H, D), or (B, L_q, H, D), of q's dtype.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device.
        RuntimeError: the backend asked for cannot serve the call.

    Memory, Source: as `attention_qkv`. Where q, k and v are slices of one tensor, `attention_qkv`
    and `attention_kv` save autograd a copy of their gradients.
    """
    for name, x, cu in (("q", q, cu_seqlens_q), ("k", k, cu_seqlens_k), ("v", v, cu_seqlens_k)):
        check_floats(name, x)
        _check_shape(name, x, None, cu if cu is not None else cu_seqlens_q)
    _check_heads("k", k, q)
    if v.shape != k.shape:
        raise ValueError(f"v: expected k's shape {tuple(k.shape)}; got {tuple(v.shape)}")
    check_like("v", v, "q", q)
    cu_q = _check_bounds("cu_seqlens_q", cu_seqlens_q, "q", q)
    cu_k = _check_bounds("cu_seqlens_k", cu_seqlens_k, "k", k, cu_q)
    batch, length_q = _lengths("max_seqlen_q", cu_q, q, max_seqlen_q)
    batch_k, length_k = _lengths("max_seqlen_k", cu_k, k, max_seqlen_k)
    _check_batch("k", batch_k, batch)
    where = cu_q, cu_k, batch, length_q, length_k, causal, _scale(scale, q)
    return _call([_flat(x, 3) for x in (q, k, v)], where, backend).view(q.shape)


_Where = tuple[Tensor | None, Tensor | None, int, int | None, int | None, bool, float]


def _call(packs: list[Tensor], where: _Where, backend: str) -> Tensor:
    parts = _operator.views(packs)
    cu_q, cu_k, batch, max_q, max_k, causal, scale = where
    chosen = BACKENDS.choose(
        backend,
        *parts,
        cu_q,
        cu_k,
        shape_class=_shape_class(parts[0], parts[1], batch, cu_q is not None),
    )
    if chosen not in _DIFFERENTIABLE:
        out: Tensor = _operator.Attention.apply((*where, chosen), *packs)
        return out
    max_q = longest(cu_q) if max_q is None else max_q
    max_k = longest(cu_k) if max_k is None else max_k
    sequences = Sequences(cu_q, cu_k, batch, max_q, max_k, causal, scale)
    result = BACKENDS.modules[chosen]().attention(*parts, sequences)
    return result[0] if isinstance(result, tuple) else result


def _shape_class(q: Tensor, k: Tensor, batch: int, packed: bool) -> str:
    """What `verify` measured such a call as. On the CPU, where it decides nothing, a comparison of
    sizes would only make torch.compile guard them."""
    if q.device.type not in MEASURED_DEVICES:
        return ""
    return length_class(len(q), len(k), batch, packed=packed)


def _check_shape(name: str, x: Tensor, parts: int | None, cu: Tensor | None) -> None:
    tokens = "T" if cu is not None else "B, L"
    middle = "" if parts is None else f"{parts}, "
    rank = (3 if cu is not None else 4) + (parts is not None)
    if x.ndim != rank or (parts is not None and x.shape[-3] != parts) or 0 in x.shape[-2:]:
        hint = "with" if cu is not None else "without"
        raise ValueError(
            f"{name}: expected shape ({tokens}, {middle}H, D) {hint} cu_seqlens; "
            f"got {tuple(x.shape)}"
        )


def _check_heads(name: str, x: Tensor, q: Tensor) -> None:
    if x.shape[-2:] != q.shape[-2:]:
        raise ValueError(
            f"{name}: expected q's heads and width {tuple(q.shape[-2:])}; got {tuple(x.shape[-2:])}"
        )
    check_like(name, x, "q", q)


def _check_batch(name: str, batch: int, batch_q: int) -> None:
    if batch != batch_q:
        raise ValueError(f"{name}: expected q's {batch_q} sequences; got {batch}")


def _check_bounds(
    name: str, cu: Tensor | None, x_name: str, x: Tensor, of_queries: Tensor | None = None
) -> Tensor | None:
    """cu_seqlens as backends want them; the queries' where the keys have none of their own."""
    if cu is None:
        return of_queries
    if not isinstance(cu, Tensor):
        raise TypeError(f"{name}: expected a tensor (B+1,) or None; got {type(cu).__name__}")
    if cu.dtype != torch.int32 or cu.ndim != 1 or len(cu) < 1:
        raise ValueError(f"{name}: expected int32 (B+1,); got {cu.dtype}, {tuple(cu.shape)}")
    check_device(name, cu, x_name, x)
    return cu.contiguous()


def _lengths(
    name: str, cu: Tensor | None, x: Tensor, longest: int | None
) -> tuple[int, int | None]:
    """How many sequences there are, and how long the longest is, if that is known."""
    if cu is None:
        return x.shape[0], x.shape[1]
    if longest is not None and longest < 0:
        raise ValueError(f"{name}: expected 0 or more; got {longest}")
    return len(cu) - 1, longest


def _scale(scale: float | None, q: Tensor) -> float:
    return q.shape[-1] ** -0.5 if scale is None else float(scale)


def _flat(x: Tensor, rank: int) -> Tensor:
    """Without the batch dimension, the last one contiguous."""
    x = x if x.ndim == rank else x.flatten(0, 1)
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
