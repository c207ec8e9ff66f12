"""`quick_gelu`: the activation of OpenAI's weights, in one pass over memory each way."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from clipfast_kernels.dispatch import Op
from clipfast_kernels.ops.arguments import check_floats


def _cpu() -> ModuleType:
    from clipfast_kernels.ops.quick_gelu import cpu

    return cpu


def _torch() -> ModuleType:
    from clipfast_kernels.ops.quick_gelu import silu

    return silu


def _triton() -> ModuleType:
    from clipfast_kernels.ops.quick_gelu import triton

    return triton


def _reference() -> ModuleType:
    from clipfast_kernels.ops.quick_gelu import reference

    return reference


def _trials() -> ModuleType:
    from clipfast_kernels.ops.quick_gelu import trials

    return trials


BACKENDS = Op(
    name="quick_gelu",
    modules={"cpu": _cpu, "torch": _torch, "triton": _triton, "reference": _reference},
    planned={"cuda": "clipfast has no CUDA kernel for this op: it is one pass over memory"},
    trials=_trials,
)

# These bring their own autograd; the others are kernels behind our operators.
_DIFFERENTIABLE = ("torch", "reference")

torch.library.define("clipfast_kernels::quick_gelu_fwd", "(Tensor x, str backend) -> Tensor")
torch.library.define(
    "clipfast_kernels::quick_gelu_bwd", "(Tensor d_y, Tensor x, str backend) -> Tensor"
)


@torch.library.impl("clipfast_kernels::quick_gelu_fwd", "CompositeExplicitAutograd")
def _forward(x: Tensor, backend: str) -> Tensor:
    y: Tensor = BACKENDS.modules[backend]().forward(x)
    return y


@torch.library.impl("clipfast_kernels::quick_gelu_bwd", "CompositeExplicitAutograd")
def _backward(d_y: Tensor, x: Tensor, backend: str) -> Tensor:
    d_x: Tensor = BACKENDS.modules[backend]().backward(d_y.contiguous(), x)
    return d_x


@torch.library.register_fake("clipfast_kernels::quick_gelu_fwd")
def _(x: Tensor, backend: str) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("clipfast_kernels::quick_gelu_bwd")
def _(d_y: Tensor, x: Tensor, backend: str) -> Tensor:
    return torch.empty_like(x)


class _QuickGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.backend = backend
        y: Tensor = torch.ops.clipfast_kernels.quick_gelu_fwd(x, backend)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, None]:
        return torch.ops.clipfast_kernels.quick_gelu_bwd(d_y, *ctx.saved_tensors, ctx.backend), None


def quick_gelu(x: Tensor, *, backend: str = "auto") -> Tensor:
    """x · σ(1.702 x), element by element.

    Equivalent PyTorch::

        x * torch.sigmoid(1.702 * x)

    which goes 21 times over a tensor of x's size, forward and backward, where this takes five.

    Args:
        x: any shape; float32, float64, float16 or bfloat16.
        backend: "auto", or a backend's name; `backends("quick_gelu")` lists them.

    Returns:
        A tensor like x, contiguous.

    Raises:
        TypeError: x is no tensor of a floating-point dtype.
        RuntimeError: the backend asked for cannot serve the call, or a second gradient is asked of
            a kernel; "torch" and "reference" have one.

    Memory: x is kept for the backward, and nothing else.

    Source: Hendrycks and Gimpel 2016, arXiv 1606.08415, §2; the activation of OpenAI's CLIP.
    """
    check_floats("x", x)
    chosen = BACKENDS.choose(backend, x)
    if chosen in _DIFFERENTIABLE:
        y: Tensor = BACKENDS.modules[chosen]().quick_gelu(x)
    else:
        y = _QuickGelu.apply(x.contiguous(), chosen)
    return y
