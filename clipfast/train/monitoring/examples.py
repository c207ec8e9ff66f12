"""``logs/NAME/examples/``: a few training pairs, as the model is shown them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image
from torch import Tensor

from clipfast.data.loader import Loader
from clipfast.data.sources.samples import UnusableError

LIST = "examples.json"

_COUNT = 12
_SIDE = 160
_LOSSLESS_SIDE = 64


def save_examples(folder: Path, loader: Loader) -> None:
    """Writes the first pairs of the first step, cropped and coloured as the first epoch has them,
    and `LIST` with their captions and places; once in a run.

    Args:
        folder: of the examples, made here.
        loader: of the run's training data.

    Raises:
        OSError: they cannot be written.
    """
    if (folder / LIST).exists():
        return
    folder.mkdir(exist_ok=True)
    entries = []
    for number in loader.sampler.batch(0, 0)[:_COUNT].tolist():
        with contextlib.suppress(UnusableError):
            entries.append(_save_example(folder, loader, number))
    (folder / LIST).write_text(json.dumps(entries, indent=1) + "\n")


def _save_example(folder: Path, loader: Loader, number: int) -> dict[str, Any]:
    random = loader.sampler.generator(0, number)
    sample = loader.samples.read(number)
    assert loader.read_caption is not None  # training has captions
    caption = loader.read_caption(sample.captions, random)
    image = _thumbnail(_shown(loader, sample.image, random))
    name = f"{number}.{'png' if max(image.size) <= _LOSSLESS_SIDE else 'jpg'}"
    image.save(folder / name, quality=85)
    return {"file": name, "caption": caption, **sample.place._asdict()}


def _shown(loader: Loader, encoded: bytes, random: Random | None) -> Tensor:
    """(3, S, S) uint8."""
    randoms = [random] if loader.augment and random is not None else None
    pixels, faults = loader.decoder([encoded], randoms)
    if faults:
        raise UnusableError(faults[0])
    return pixels[0].cpu()


def _thumbnail(pixels: Tensor) -> Image.Image:
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return image
