"""Which backend computes each operation of a run, and why that one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from clipfast_kernels import backends
from clipfast_kernels.dispatch import FROM_ENVIRONMENT
from clipfast_kernels.verdicts import pinned, verdict_path
from torch import Tensor

from clipfast.models.precision import computed_dtype

# Modules by whose class a model tells that it needs an operation.
_NEEDED_BY = {
    "attention": (
        "Attention",
        "ResidualAttentionBlock",
        "MultiheadAttention",
        "AttentionPool2d",
        "HFTextTower",
    ),
    "quick_gelu": ("QuickGELU",),
    "batch_norm": ("BatchNorm2d",),
}


def describe_kernels(
    model: Any, device: torch.device, *, precision: str, loss: str, loss_backend: str
) -> Iterator[str]:
    """Lines of the start summary, ``kernels: OP by BACKEND, WHY``.

    Args:
        model: whose modules tell which operations it needs.
        device: the model's.
        precision: that it computes in, by open_clip's name.
        loss: "contrastive_loss" or "sigmoid_loss".
        loss_backend: `--backend`.
    """
    classes = {type(module).__name__ for module in model.modules()}
    needed = [op for op, names in _NEEDED_BY.items() if classes.intersection(names)]
    if device.type != "cpu" and "batch_norm" in needed:
        needed.remove("batch_norm")  # torch's own serves there
    dtype = computed_dtype(precision)
    for op in (loss, *needed):
        asked = loss_backend if op == loss else "auto"
        tensors = _example(op, torch.float32 if op == loss else dtype, device)
        chosen = asked if asked != "auto" else backends(op, *tensors).auto
        yield f"kernels: {op} by {chosen}, {_why(op, tensors, asked, str(chosen), device)}"


def _why(
    op: str, tensors: tuple[Tensor, ...], asked: str, chosen: str, device: torch.device
) -> str:
    if asked != "auto":
        return "as --backend says"
    if chosen == FROM_ENVIRONMENT:
        return "as CLIPFAST_BACKEND says"
    if pinned(op, device) == chosen:
        return f"pinned in {verdict_path(device)}"
    if device.type == "cpu":
        reasons = backends(op, *tensors).reasons
        before = list(reasons)[: list(reasons).index(chosen)]
        passed = [f"{name}: {'; '.join(reasons[name])}" for name in before]
        return "the fastest here" if not passed else f"since {'; '.join(passed)}"
    if verdict_path(device).exists():
        return "the fastest right one that `clipfast doctor --verify` found on this GPU"
    return "not measured on this GPU: `clipfast doctor --verify` would"


def _example(op: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """The smallest arguments of a kind that training has."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    if op == "attention":
        return empty(1, 50, 1, 64), empty(1, 50, 1, 64), empty(1, 50, 1, 64)
    if op == "batch_norm":
        x = empty(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
        return x, empty(8), empty(8)
    if op == "quick_gelu":
        return (empty(1, 8),)
    return empty(1, 8), empty(1, 8)
