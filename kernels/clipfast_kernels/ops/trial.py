"""What `verify` calls an op with: the form, and what the ops' trials have in common.

An op's ``trials.py`` says which kinds of calls matter to it:

    shape_class(*tensors) -> str            the kind of a call, from its tensors, in a few words
    trials(device, dtype) -> Iterator[Trial]   one call of each kind, and odd sizes, only checked
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Trial(NamedTuple):
    """One call on random data.

    Attributes:
        shape_class: what the op's `shape_class` says of it.
        draw: draw(seed) gives the inputs, random tensors in the trial's dtype and None for what is
            left out.
        call: call(backend, *inputs) makes the public call and its backward, and returns every
            output and every gradient by name.
        timed: False only checks it; its shape class is then a label.
    """

    shape_class: str
    draw: Callable[[int], tuple[Tensor | None, ...]]
    call: Callable[..., dict[str, Tensor]]
    timed: bool = True


# Batches grow by doubling; a factor of four rarely changes which kernel wins.
_ROWS = (1024, 4096)
_WIDTHS = (512,)


def rows_class(rows: int, width: int) -> str:
    """The kind of a call on (rows, width) features."""
    return f"{_bucket('N', rows, _ROWS)} {_bucket('D', width, _WIDTHS)}"


def _bucket(name: str, size: int, limits: tuple[int, ...]) -> str:
    for limit in limits:
        if size <= limit:
            return f"{name}≤{limit}"
    return f"{name}>{limits[-1]}"


def rows_shapes(device: torch.device) -> list[tuple[int, int]]:
    """(rows, width) of one call of each kind; of the first kind alone where all is slow."""
    if device.type == "cpu":
        return [(1024, 512)]
    return [(n, d) for n in (1024, 4096, 8192) for d in (512, 768)]


def normal(
    seed: int, dtype: torch.dtype, device: torch.device, *shapes: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """Normal numbers, drawn in float32 where they are needed."""
    has_numbers = device.type != "meta"
    generator = torch.Generator(device).manual_seed(seed) if has_numbers else None
    return tuple(torch.randn(*s, generator=generator, device=device).to(dtype) for s in shapes)


def pairs(
    n: int, d: int, dtype: torch.dtype, device: torch.device, seed: int
) -> tuple[Tensor, Tensor]:
    """Features whose pairs are alike, with a cosine of 0.7.

    So the gradients of scale and bias, sums over all pairs, do not cancel to the size of their
    rounding, and an error shows beside the value itself.
    """
    image, other = normal(seed, torch.float32, device, (n, d), (n, d))
    return image.to(dtype), (image + other).to(dtype)


def with_gradients(
    output: Tensor, leaves: dict[str, Tensor], d_output: Tensor | None = None
) -> dict[str, Tensor]:
    """The gradient of each leaf, named d_<leaf>."""
    gradients = torch.autograd.grad(output, list(leaves.values()), d_output)
    return {f"d_{name}": g for name, g in zip(leaves, gradients, strict=True)}


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()
