"""x Wᵀ + b in float32 on a CPU, by whichever of torch's two libraries is the faster there.

torch multiplies float32 matrices by MKL. On AMD's processors with AVX-512 oneDNN, which torch
brings for convolutions and Inductor, is faster: by 6 to 12 % in the forward, where it adds the bias
on its way, and by 4 to 12 % for the input's gradient; for most weights' gradients it is slower.
docs/kernels.md has the figures.

M rows, I inputs, O outputs.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

# Multiplications from which it is worth 20 µs of Python, by whether gradients are kept.
_LEAST = {False: 1 << 24, True: 1 << 27}

_Kind = TypeVar("_Kind", bound=nn.Module)


class Linear(nn.Linear):
    """`nn.Linear` with the same parameters and, to rounding, the same result."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: (…, I) -> (…, O)."""
    if not _by_onednn(x, weight):
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return _product(x, weight, bias)
    out: Tensor = _Linear.apply(x, weight, bias)
    return out


def linear_then(activation: nn.Module, x: Tensor, layer: nn.Module) -> Tensor:
    """``activation(layer(x))``; without gradients, exact GELU in the same pass.

    Modules that somebody has put in the place of these, or hung hooks on, are called as they are.
    """
    if (
        not torch.is_grad_enabled()
        and _is_plain(activation, nn.GELU)
        and activation.approximate == "none"
        and _is_plain(layer, Linear)
        and _by_onednn(x, layer.weight)
    ):
        return _product(x, layer.weight, layer.bias, "gelu")
    out: Tensor = activation(layer(x))
    return out


def _is_plain(module: nn.Module, kind: type[_Kind]) -> TypeGuard[_Kind]:
    return type(module) is kind and not (module._forward_pre_hooks or module._forward_hooks)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        d_MO = d_out.reshape(-1, d_out.shape[-1])
        d_x = _product(d_MO, weight.t(), None).view(x.shape) if wants_x else None
        d_weight = d_MO.t() @ x.reshape(-1, x.shape[-1]) if wants_weight else None
        return d_x, d_weight, d_MO.sum(0) if wants_bias else None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    # The operator that Inductor puts in place of F.linear: torch/_inductor/mkldnn_ir.py.
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none")
    return out


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Not under a dispatch mode: what counts, traces or fakes operators knows F.linear's alone."""
    return (
        not torch.compiler.is_compiling()  # first: the rest would break the graph
        and x.numel() * weight.shape[0] >= _LEAST[torch.is_grad_enabled()]
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and _onednn_is_faster()
        and not torch.is_autocast_enabled("cpu")
        and not is_in_torch_dispatch_mode()
    )


@cache
def _onednn_is_faster() -> bool:
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return (
        has.get("avx512_f", False)
        and has.get("cpu_name", "").startswith("AMD")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
