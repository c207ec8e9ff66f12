"""Which decoder turns encoded images into the model's pixels.

B images, S the model's size.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from random import Random
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from clipfast.data.images.augmentation import Augmentation
from clipfast.data.images.preprocess import View
from clipfast.errors import UserError

DECODERS = ("auto", "dali", "native")


class Decoded(NamedTuple):
    """A batch's pixels.

    Attributes:
        pixels: (B, 3, S, S) uint8 in channels_last memory, on the decoder's device; rows in
            `faults` are unset.
        faults: row to the reason why its image cannot be used.
    """

    pixels: Tensor
    faults: dict[int, str]


class Decoder(Protocol):
    """Encoded images to uint8 pixels; safe from several threads.

    Attributes:
        name: "native" or "dali".
        device: of the pixels.
        part: how many images it likes at once; 0 is the whole batch.
    """

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def part(self) -> int: ...

    def __call__(self, encoded: Sequence[bytes], randoms: Sequence[Random] | None) -> Decoded:
        """Decodes B images.

        Args:
            encoded: JPEG, PNG or WebP each.
            randoms: of each image's augmentation; None shows them as evaluation does.
        """


def choose_decoder(
    name: str,
    *,
    size: int,
    augmentation: Augmentation,
    view: View = View(),  # noqa: B008  immutable
    device: torch.device,
    threads: int,
    fast_jpeg: bool = False,
    max_batch: int,
) -> Decoder:
    """The decoder of that name.

    "auto" is DALI where it is installed, on a CUDA device, for bicubic crops and without
    `fast_jpeg`, else native.

    Args:
        size: S.
        augmentation: of training.
        view: of evaluation. DALI has CLIP's alone, and leaves another to the native decoder.
        device: that trains.
        threads: that DALI may use on the CPU.
        fast_jpeg: decodes a JPEG natively to 1/2, 1/4 or 1/8 of its size where the crop still
            covers S × S. That takes 10 to 20 % off at 1280 × 854 and about half at 2560 × 1708.
            Pixels of two photographs differ by 0.7/255 to 3.6/255 on average from those decoded in
            full, and by up to 88/255 at edges, as the crop is rounded to pixels of the small image.
        max_batch: the largest B.

    Raises:
        UserError: DALI is asked for, and is not installed, or is to decode by `fast_jpeg`, or to
            resize crops bilinearly.
    """
    if name == "dali" and not has_dali():
        raise UserError('--decoder dali: expected NVIDIA DALI; pip install "clipfast[dali]"')
    if name == "dali" and fast_jpeg:
        raise UserError("--fast-jpeg: expected --decoder native; got dali, which decodes in full")
    bicubic = augmentation.interpolation == "bicubic"
    if name == "dali" and not bicubic:
        raise UserError(
            f"--image-interpolation {augmentation.interpolation}: expected --decoder native with "
            "use_timm; got dali, which resizes crops bicubically"
        )
    serves = device.type == "cuda" and bicubic and not fast_jpeg
    if name == "dali" or (name == "auto" and serves and has_dali()):
        from clipfast.data.images.dali import DaliDecoder

        return DaliDecoder(
            size, augmentation, view, device=device, threads=threads, max_batch=max_batch
        )
    from clipfast.data.images.native import NativeDecoder

    return NativeDecoder(size, augmentation, view, fast_jpeg=fast_jpeg)


def has_dali() -> bool:
    """Whether NVIDIA DALI can be imported."""
    return (
        importlib.util.find_spec("nvidia") is not None
        and importlib.util.find_spec("nvidia.dali") is not None
    )
