"""Attention by the flash-attn package, versions 2 and 4, with its own autograd.

Our call of it is written from its documentation; nothing here has run, for want of a GPU.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from clipfast_kernels.ops.attention.sequences import Sequences

_WIDEST_HEAD = {"flash_attn": 256, "flash_attn.cute": 128}


def _found() -> str | None:
    """The module that holds the newest version installed."""
    for name in ("flash_attn.cute", "flash_attn"):
        try:
            if importlib.util.find_spec(name) is not None:
                return name
        except ModuleNotFoundError:
            continue
    return None


_MODULE = _found()


def unusable(*tensors: Tensor) -> list[str]:
    if _MODULE is None:
        return ["the package flash-attn is not installed (`pip install flash-attn`)"]
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return ["flash-attn is for NVIDIA GPUs, and torch sees none"]
    # Version 4 is written for Hopper and Blackwell.
    needed = (9, 0) if _MODULE == "flash_attn.cute" else (8, 0)
    reasons = []
    for x in (t for t in tensors if t.is_floating_point()):
        if not x.is_cuda:
            reasons.append(f"a tensor is on {x.device}, and flash-attn is for the GPU")
        elif torch.cuda.get_device_capability(x.device) < needed:
            reasons.append(f"{_MODULE} needs compute capability {needed[0]}.{needed[1]} or newer")
        if x.dtype not in (torch.float16, torch.bfloat16):
            reasons.append(f"a tensor is {x.dtype}, and flash-attn takes float16 and bfloat16")
        if x.shape[-1] > _WIDEST_HEAD[_MODULE]:
            reasons.append(
                f"the head width is {x.shape[-1]}, and {_MODULE} takes up to "
                f"{_WIDEST_HEAD[_MODULE]}"
            )
    return list(dict.fromkeys(reasons))


def attention(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> Tensor:
    """(T_q, H, D), differentiable. Its causal mask is aligned at the end, as ours is."""
    batch, causal, scale = sequences.batch, sequences.causal, sequences.scale
    how: dict[str, Any] = {"softmax_scale": scale, "causal": causal}
    if sequences.cu_q is None and sequences.cu_k is None:
        parts = [x.unflatten(0, (batch, -1)) for x in (q, k, v)]
        return _only_output(_function("flash_attn_func")(*parts, **how)).flatten(0, 1)
    cu_q, cu_k = (
        torch.arange(batch + 1, device=q.device, dtype=torch.int32) * length if cu is None else cu
        for cu, length in ((sequences.cu_q, sequences.max_q), (sequences.cu_k, sequences.max_k))
    )
    how |= {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k}
    how |= {"max_seqlen_q": sequences.max_q, "max_seqlen_k": sequences.max_k}
    return _only_output(_function("flash_attn_varlen_func")(q, k, v, **how))


def _function(name: str) -> Any:
    assert _MODULE is not None
    return getattr(importlib.import_module(_MODULE), name)


def _only_output(returned: Any) -> Tensor:
    """Version 4 returns the log-sum-exps as well."""
    out: Tensor = returned[0] if isinstance(returned, tuple) else returned
    return out
