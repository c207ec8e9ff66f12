"""Colour jitter and grey on uint8 pixels: by Pillow on a CPU, to the bit the same elsewhere.

B images of S × S pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as pil

from clipfast.data.images.augmentation import Draw


def recolour(images: Tensor, draws: Sequence[Draw]) -> None:
    """Jitters (B, 3, S, S) uint8 and takes their colour, in place, as each image's draw tells."""
    if images.device.type != "cpu":
        recolour_batch(images, draws)
        return
    for image, draw in zip(images, draws, strict=True):
        if not draw.changes_colour:
            continue
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        for name, factor in draw.jitter:
            picture = _PIL_OPERATIONS[name](picture, factor)
        if draw.grey:
            picture = picture.convert("L").convert("RGB")
        image.copy_(torch.from_numpy(np.array(picture)).permute(2, 0, 1))


def recolour_batch(images: Tensor, draws: Sequence[Draw]) -> None:
    """`recolour` by tensor operations on all images at once, for GPUs; Pillow is faster on CPUs."""
    for turn in range(max((len(draw.jitter) for draw in draws), default=0)):
        for name, operation in _OPERATIONS.items():
            factors = {
                row: draw.jitter[turn][1]
                for row, draw in enumerate(draws)
                if turn < len(draw.jitter) and draw.jitter[turn][0] == name
            }
            if factors:
                rows = list(factors)
                column = torch.tensor(list(factors.values()), device=images.device)
                images[rows] = operation(images[rows], column.view(-1, 1, 1, 1))
    if rows := [row for row, draw in enumerate(draws) if draw.grey]:
        images[rows] = grey(images[rows]).expand(-1, 3, -1, -1)


def grey(images: Tensor) -> Tensor:
    """ITU-R 601-2 luma in fixed point: (B, 3, S, S) uint8 -> (B, 1, S, S) uint8."""
    r, g, b = images.int().unbind(1)
    luma = (19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16
    return luma.to(torch.uint8).unsqueeze(1)


def _blend(plain: Tensor | float, images: Tensor, factor: Tensor) -> Tensor:
    """plain + factor · (images − plain), cut off to whole numbers."""
    mixed = plain + factor * (images.float() - plain)
    return mixed.clamp_(0, 255).to(torch.uint8)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """(B, 3, S, S) uint8 and (B, 1, 1, 1) -> (B, 3, S, S) uint8, as the following two."""
    return _blend(0.0, images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    luma = grey(images)
    mean = luma.sum(dim=(1, 2, 3), dtype=torch.int64).double() / luma[0].numel()
    return _blend((mean + 0.5).floor().float().view(-1, 1, 1, 1), images, factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(grey(images).float(), images, factor)


def hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turns the colour circle, of 256 steps, by factor · 255 of them, cut off to a whole number."""
    h, s, v = _hsv(images)
    turn = (factor.double() * 255).int().view(-1, 1, 1)
    return _rgb((h + turn) % 256, s, v)


def _hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, S, S) int32 each, 0 to 255. Single and double precision alternate as in Pillow's C."""
    r, g, b = images.float().unbind(1)
    largest, smallest = images.amax(1).float(), images.amin(1).float()
    chroma = largest - smallest
    span = chroma.clamp(min=1)
    rc, gc, bc = ((largest - x) / span for x in (r, g, b))
    of_green, of_blue = (2.0 + rc.double() - bc).float(), (4.0 + gc.double() - rc).float()
    sixths = torch.where(r == largest, bc - gc, torch.where(g == largest, of_green, of_blue))
    h = torch.fmod(sixths.double() / 6.0 + 1.0, 1.0).float()
    s = chroma / largest.clamp(min=1)
    coloured = chroma > 0
    h, s = ((255.0 * x.double()).int().clamp_(0, 255) * coloured for x in (h, s))
    return h, s, largest.int()


def _rgb(h: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """Three (B, S, S) int32 -> (B, 3, S, S) uint8."""
    sixths = h.float() * 6.0 / 255.0
    sector = sixths.floor()
    part, share, value = (sixths - sector).double(), s.float().div(255.0).double(), v.double()
    p, q, t = (
        # C's round, which takes halves away from 0, and not to the even one.
        (value * x + 0.5).floor().clamp_(0, 255).to(torch.uint8)
        for x in (1.0 - share, 1.0 - share * part, 1.0 - share * (1.0 - part))
    )
    v = v.to(torch.uint8)
    by_sector = (
        torch.stack(colours, dim=1)
        for colours in ((v, t, p), (q, v, p), (p, v, t), (p, q, v), (t, p, v), (v, p, q))
    )
    sector = (sector.int() % 6).unsqueeze(1)
    rgb = torch.empty_like(torch.stack((v, v, v), dim=1))
    for number, colours in enumerate(by_sector):
        rgb = torch.where(sector == number, colours, rgb)
    return torch.where((s == 0).unsqueeze(1), v.unsqueeze(1), rgb)


_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "hue": hue,
}
_PIL_OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "brightness": pil.adjust_brightness,
    "contrast": pil.adjust_contrast,
    "saturation": pil.adjust_saturation,
    "hue": pil.adjust_hue,
}
