"""`batch_norm`: batch normalisation of channels-last activations, with its ReLU."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from clipfast_kernels.dispatch import Op
from clipfast_kernels.ops.arguments import check_device, check_floats


def _cpu() -> ModuleType:
    from clipfast_kernels.ops.batch_norm import cpu

    return cpu


def _torch() -> ModuleType:
    from clipfast_kernels.ops.batch_norm import native

    return native


def _reference() -> ModuleType:
    from clipfast_kernels.ops.batch_norm import reference

    return reference


def _trials() -> ModuleType:
    from clipfast_kernels.ops.batch_norm import trials

    return trials


_VENDOR = "clipfast has no GPU kernel for this op: the vendor's, behind 'torch', serves"
BACKENDS = Op(
    name="batch_norm",
    modules={"cpu": _cpu, "torch": _torch, "reference": _reference},
    planned={"cuda": _VENDOR, "triton": _VENDOR},
    trials=_trials,
)

# These bring their own autograd; the other is a kernel behind our operators.
_DIFFERENTIABLE = ("torch", "reference")

_STATISTICS = "Tensor? mean, Tensor? var, float eps, bool relu, str backend"
torch.library.define(
    "clipfast_kernels::batch_norm_fwd",
    f"(Tensor x, Tensor weight, Tensor bias, {_STATISTICS}) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "clipfast_kernels::batch_norm_bwd",
    "(Tensor d_y, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor var, float eps,"
    " bool relu, bool of_batch, str backend) -> (Tensor, Tensor, Tensor)",
)


@torch.library.impl("clipfast_kernels::batch_norm_fwd", "CompositeExplicitAutograd")
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    relu: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = None if mean is None or var is None else (mean, var)
    y, mean, var = BACKENDS.modules[backend]().forward(x, weight, bias, statistics, eps, relu)
    return y, mean.clone(), var.clone()


@torch.library.impl("clipfast_kernels::batch_norm_bwd", "CompositeExplicitAutograd")
def _backward(d_y: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *arguments, backend = rest
    if x.ndim == 4:
        d_y = d_y.contiguous(memory_format=torch.channels_last)
    d_x, d_weight, d_bias = BACKENDS.modules[backend]().backward(d_y, x, *arguments)
    return d_x, d_weight, d_bias


@torch.library.register_fake("clipfast_kernels::batch_norm_fwd")
def _(x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean, var = (x.new_empty(x.shape[1], dtype=dtype) for _ in range(2))
    return torch.empty_like(x), mean, var


@torch.library.register_fake("clipfast_kernels::batch_norm_bwd")
def _(d_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        statistics: tuple[Tensor, Tensor] | None,
        eps: float,
        relu: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        given = (None, None) if statistics is None else statistics
        y, mean, var = torch.ops.clipfast_kernels.batch_norm_fwd(
            x, weight, bias, *given, eps, relu, backend
        )
        ctx.save_for_backward(x, weight, bias, mean, var)
        ctx.rest = eps, relu, statistics is None, backend
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_y: Tensor, *_: Any) -> tuple[Any, ...]:
        found = torch.ops.clipfast_kernels.batch_norm_bwd(d_y, *ctx.saved_tensors, *ctx.rest)
        return *found, None, None, None, None


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = False,
    backend: str = "auto",
) -> Tensor:
    """(x − mean)/√(var + eps)·weight + bias by channel, then a ReLU if asked for.

    Equivalent PyTorch::

        y = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        F.relu(y) if relu else y

    On the CPU, where activations are channels-last, torch adds up a channel's values one after
    the other in float32 and loses a digit; here 256 at a time, and those in float64.

    Args:
        x: (B, C, h, w), channels-last on the "cpu" backend, or (B, C); float32, float64, float16 or
            bfloat16.
        weight, bias: (C,).
        running_mean, running_var: (C,); what normalises outside of training, and is moved towards
            the batch's by `momentum` in training. None: the batch's normalise always.
        training: normalise by the batch's mean and variance.
        relu: max(y, 0), in the same pass.
        backend: "auto", or a backend's name; `backends("batch_norm")` lists them.

    Returns:
        A tensor like x.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or device; one value per channel
            in training.
        RuntimeError: the backend asked for cannot serve the call, or a second gradient is asked of
            the kernel; "torch" and "reference" have one.

    Memory: x and values per channel are kept for the backward; not what comes before the ReLU.

    Source: Ioffe and Szegedy 2015, arXiv 1502.03167.
    """
    _check(x, weight, bias, running_mean, running_var)
    of_batch = training or running_mean is None or running_var is None
    count = x.numel() // max(1, x.shape[1])
    if of_batch and count < 2:
        raise ValueError(f"x: expected 2 values or more per channel; got {tuple(x.shape)}")
    statistics = None if of_batch else (running_mean, running_var)
    chosen = BACKENDS.choose(backend, x, weight, bias)
    if chosen in _DIFFERENTIABLE:
        found = BACKENDS.modules[chosen]().batch_norm(x, weight, bias, statistics, eps, relu)
    else:
        found = _BatchNorm.apply(x, weight, bias, statistics, eps, relu, chosen)
    y, mean, var = found
    if training and running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            unbiased = var * (count / (count - 1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    result: Tensor = y
    return result


def _check(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor | None, running_var: Tensor | None
) -> None:
    check_floats("x", x)
    if x.ndim not in (2, 4):
        raise ValueError(f"x: expected (B, C, h, w) or (B, C); got shape {tuple(x.shape)}")
    named = {"weight": weight, "bias": bias} | {
        name: tensor
        for name, tensor in (("running_mean", running_mean), ("running_var", running_var))
        if tensor is not None
    }
    for name, tensor in named.items():
        check_floats(name, tensor)
        if tensor.shape != x.shape[1:2]:
            raise ValueError(f"{name}: expected ({x.shape[1]},); got {tuple(tensor.shape)}")
        check_device(name, tensor, "x", x)
