"""The batch size at which a device encodes most images in a second."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from clipfast.errors import UserError

_FIRST = 8
_MOST = 1024
_GAIN = 1.05  # of a doubling, below which larger batches cost memory for nothing


def fastest_batch_size(encode: Callable[[int], object], device: torch.device, most: int) -> int:
    """Doubles while images per second rise by more than 5 % and memory fits; halves where it does
    not.

    Args:
        encode: makes features of so many images.
        device: on which it does.
        most: larger ones are not tried.

    Raises:
        UserError: one image does not fit.
    """
    most = min(most, _MOST)
    size, best, rate = min(_FIRST, most), 0, 0.0
    while size <= most:
        try:
            encode(size)  # the first call of a shape pays for choices that the others find made
            found = size / _seconds(encode, size, device)
        except torch.OutOfMemoryError:
            return best or _fitting(encode, size // 2)
        if found < _GAIN * rate:
            break
        size, best, rate = 2 * size, size, found
    return best


def _fitting(encode: Callable[[int], object], size: int) -> int:
    while size:
        try:
            encode(size)
        except torch.OutOfMemoryError:
            size //= 2
        else:
            return size
    raise UserError("--device: expected memory for an image; got out of memory")


def _seconds(encode: Callable[[int], object], size: int, device: torch.device) -> float:
    _finish(device)
    start = time.perf_counter()
    encode(size)
    _finish(device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
