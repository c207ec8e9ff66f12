"""open_clip's `--precision`: what is kept in 16 bits, and what is computed in them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import nn

from clipfast.errors import UserError

_AUTOCAST = {"amp": torch.float16, "amp_bf16": torch.bfloat16, "amp_bfloat16": torch.bfloat16}
_MATRICES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_EVERYTHING = {"pure_bf16": torch.bfloat16, "pure_fp16": torch.float16}
PRECISIONS = ("fp32", *_AUTOCAST, *_MATRICES, *_EVERYTHING)

# Parameters that are matrices without a module of their own.
_PROJECTIONS = ("text_projection", "proj", "in_proj_weight", "in_proj_bias")

Model = TypeVar("Model", bound=nn.Module)


def convert_weights(model: Model, precision: str) -> Model:
    """Converts a model's parameters in place.

    Args:
        precision: bf16, fp16: linear layers, convolutions and projections in 16 bits, the rest in
            float32; pure_bf16, pure_fp16: everything in 16 bits; others leave float32.

    Raises:
        UserError: no such precision.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision: expected one of {', '.join(PRECISIONS)}; got {precision!r}")
    if precision in _EVERYTHING:
        return model.to(_EVERYTHING[precision])
    if precision in _MATRICES:
        dtype = _MATRICES[precision]
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
                module.to(dtype)
            for name in _PROJECTIONS:
                if isinstance(parameter := getattr(module, name, None), nn.Parameter):
                    parameter.data = parameter.data.to(dtype)
    return model


def input_dtype(precision: str) -> torch.dtype:
    """Of the images that a model of this precision takes."""
    return {**_MATRICES, **_EVERYTHING}.get(precision, torch.float32)


def computed_dtype(precision: str) -> torch.dtype:
    """In which a model of this precision multiplies its matrices."""
    return {**_AUTOCAST, **_MATRICES, **_EVERYTHING}.get(precision, torch.float32)


def is_autocast(precision: str) -> bool:
    """Whether parameters stay in float32 and are cast where they are multiplied."""
    return precision in _AUTOCAST


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """In which a model of this precision computes its forward."""
    if not is_autocast(precision):
        return nullcontext()
    return torch.autocast(device.type, _AUTOCAST[precision])
