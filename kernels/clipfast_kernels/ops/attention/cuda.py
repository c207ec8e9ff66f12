"""Attention on CUDA: the compiled kernels of ``csrc/cuda/attention.cu``.

The schemas here exist with or without the kernels. T tokens, H heads, D head width.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from clipfast_kernels import extension
from clipfast_kernels.ops.attention import tiles
from clipfast_kernels.ops.attention.sequences import Sequences

__all__ = ["backward", "forward", "unusable"]

WIDTHS = (32, 64, 80, 96, 128)

_ARGUMENTS = (
    "Tensor? cu_q, Tensor? cu_k, int batch, int max_q, int max_k, bool causal, float scale,"
    " int[] plans, int stream"
)
torch.library.define(
    "clipfast_kernels::attention_fwd_cuda",
    f"(Tensor q, Tensor k, Tensor v, {_ARGUMENTS}, Tensor(a!) out, Tensor(b!) lse) -> ()",
)
torch.library.define(
    "clipfast_kernels::attention_bwd_cuda",
    f"(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_ARGUMENTS},"
    " Tensor(a!) d_q, Tensor(b!) d_k, Tensor(c!) d_v, Tensor(d!) delta) -> ()",
)


def _missing() -> str | None:
    """Why there are no kernels, in one sentence; None where there are."""
    if extension.MISSING is not None:
        return extension.MISSING
    if torch._C._dispatch_has_kernel_for_dispatch_key(
        "clipfast_kernels::attention_fwd_cuda", "CUDA"
    ):
        return None
    record = Path(extension.__file__).with_name("_build.json")
    try:
        reason = json.loads(record.read_text(encoding="utf-8"))["cuda"]
    except (OSError, ValueError, KeyError):
        reason = "the build left no record of why"
    return f"this build has no CUDA kernels: {reason}"


# Found once, at import, so that torch.compile sees a constant.
MISSING = _missing()


def unusable(*tensors: Tensor) -> list[str]:
    reasons = [MISSING] if MISSING is not None else []
    if torch.version.hip is not None or not torch.cuda.is_available():
        reasons.append("there is no CUDA GPU")
    for device in sorted({str(t.device) for t in tensors if not t.is_cuda}):
        reasons.append(f"a tensor is on {device}, and this backend is for CUDA")
    for cuda in sorted({t.device for t in tensors if t.is_cuda}, key=str):
        major, minor = torch.cuda.get_device_capability(cuda)
        if major < 8:
            reasons.append(f"{cuda} has compute capability {major}.{minor}, expected 8.0 or more")
    features = [t for t in tensors if t.is_floating_point()]
    for dtype in sorted({str(t.dtype) for t in features} - {"torch.float16", "torch.bfloat16"}):
        reasons.append(f"a tensor is {dtype}, and this backend takes float16 and bfloat16")
    for width in sorted({t.shape[-1] for t in features} - set(WIDTHS)):
        known = ", ".join(map(str, WIDTHS))
        reasons.append(f"the heads are {width} wide, and this backend takes {known}")
    if not all(_aligned(t) for t in features if t.ndim == 3):  # q, k, v; what they lie in has more
        reasons.append("a tensor's heads are not adjacent, or a token does not lie on 16 bytes")
    if any(t.shape[0] >= 2**30 for t in features):
        reasons.append("a tensor has 2^30 tokens or more")
    return reasons


def forward(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """out (T_q, H, D) and lse (H, T_q)."""
    rows, heads, width = q.shape
    out = q.new_empty(rows, heads, width)
    lse = q.new_empty(heads, rows, dtype=torch.float32)
    plans = [*_plan("fwd", q, k, sequences)]
    torch.ops.clipfast_kernels.attention_fwd_cuda(q, k, v, *sequences, plans, _stream(q), out, lse)
    return out, lse


def backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    d_q: Tensor,
    d_k: Tensor,
    d_v: Tensor,
    sequences: Sequences,
) -> None:
    """Fills d_q (T_q, H, D), d_k and d_v (T_k, H, D)."""
    if not _aligned(d_out):
        d_out = d_out.clone(memory_format=torch.contiguous_format)
    delta = torch.empty_like(lse)
    plans = [*_plan("bwd_q", q, k, sequences), *_plan("bwd_kv", q, k, sequences)]
    torch.ops.clipfast_kernels.attention_bwd_cuda(
        d_out, q, k, v, out, lse, *sequences, plans, _stream(q), d_q, d_k, d_v, delta
    )


def _plan(step: str, q: Tensor, k: Tensor, sequences: Sequences) -> tiles.Plan:
    batch = max(1, sequences.batch)
    sides = [(q.shape[0], sequences.max_q), (k.shape[0], sequences.max_k)]
    (rows, longest), (_, other_longest) = sides[::-1] if step == "bwd_kv" else sides
    return tiles.plan(
        step,
        batch=batch,
        heads=q.shape[1],
        width=q.shape[2],
        longest=longest,
        typical=-(-rows // batch),
        other_longest=other_longest,
        multiprocessors=torch.cuda.get_device_properties(q.device).multi_processor_count,
    )


def _stream(x: Tensor) -> int:
    return torch.cuda.current_stream(x.device).cuda_stream


def _aligned(x: Tensor) -> bool:
    """Heads adjacent, and every token on a multiple of 16 bytes."""
    _, heads, width = x.shape
    adjacent = x.stride(2) == 1 and (heads == 1 or x.stride(1) == width)
    return bool(adjacent and x.stride(0) % 8 == 0 and x.storage_offset() % 8 == 0)
