"""The checks that the public functions share: each raises one sentence with the argument's name."""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast_kernels.distributed import GatheredFeatures, local_rows

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_matrix(name: str, x: Tensor | GatheredFeatures) -> Tensor:
    """This rank's rows of a (rows, D) argument."""
    if not isinstance(x, (Tensor, GatheredFeatures)):
        raise TypeError(f"{name}: expected a tensor (N, D); got {type(x).__name__}")
    rows = local_rows(x)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{name}: expected shape (N, D), N and D ≥ 1; got {tuple(rows.shape)}")
    if rows.dtype not in _FLOATS:
        raise TypeError(f"{name}: expected a floating-point dtype; got {rows.dtype}")
    return rows


def check_floats(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor; got {type(x).__name__}")
    if x.dtype not in _FLOATS:
        raise TypeError(f"{name}: expected a floating-point dtype; got {x.dtype}")


def check_pairs(
    image_features: Tensor | GatheredFeatures, text_features: Tensor | GatheredFeatures
) -> tuple[Tensor, Tensor]:
    """This rank's rows of both towers, which must match."""
    image = check_matrix("image_features", image_features)
    text = check_matrix("text_features", text_features)
    if text.shape != image.shape:
        raise ValueError(
            f"text_features: expected image_features' shape {tuple(image.shape)}; "
            f"got {tuple(text.shape)}"
        )
    check_like("text_features", text, "image_features", image)
    return image, text


def check_like(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    if x.dtype != other.dtype:
        raise TypeError(f"{name}: expected {other_name}' dtype {other.dtype}; got {x.dtype}")
    check_device(name, x, other_name, other)


def check_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    if x.device != other.device:
        raise ValueError(f"{name}: expected {other_name}' device {other.device}; got {x.device}")


def check_scalar(name: str, value: Tensor | float, features_name: str, features: Tensor) -> Tensor:
    """A number or a tensor of one element, as a tensor on the features' device."""
    if not isinstance(value, Tensor):
        if not isinstance(value, (int, float)):
            raise TypeError(f"{name}: expected a number or a tensor; got {type(value).__name__}")
        wide = torch.float64 if features.dtype == torch.float64 else torch.float32
        value = torch.tensor(float(value), dtype=wide, device=features.device)
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(
            f"{name}: expected one floating-point element; "
            f"got shape {tuple(value.shape)}, {value.dtype}"
        )
    check_device(name, value, features_name, features)
    return value


def check_integers(name: str, x: Tensor | None, features_name: str, features: Tensor) -> None:
    """None, or int64 with one element per row of the features."""
    if x is None:
        return
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor (N,) or None; got {type(x).__name__}")
    if x.dtype != torch.int64 or x.shape != features.shape[:1]:
        raise ValueError(
            f"{name}: expected int64 of shape ({len(features)},); got {x.dtype}, {tuple(x.shape)}"
        )
    check_device(name, x, features_name, features)
