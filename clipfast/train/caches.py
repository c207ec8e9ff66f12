"""Which locked towers' features are kept on disk, and under which key."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clipfast.data.feature_cache import FeatureCache, fingerprint
from clipfast.data.loader import Caches
from clipfast.data.sources.sample_set import SampleSet
from clipfast.errors import UserError
from clipfast.models.factory import image_size
from clipfast.models.locking import Part, is_constant, is_locked, text_parts

_PIXELS = "short side resized, bicubic with antialiasing on uint8; centre crop"

# What features depend on and neither weights nor a module's repr tell.
_UNTOLD = (
    "heads",
    "num_heads",
    "num_attention_heads",
    "pool_type",
    "text_pool_type",
    "pooler_type",
    "tokenizer_name",
)


def describe(caches: Caches) -> Iterator[str]:
    """Lines of the log."""
    for cache in caches:
        if cache is not None:
            yield (
                f"cache: {cache.kind} features in {cache.path}, "
                f"{cache.filled:,} of {cache.samples:,} there"
            )
    if caches.image is not None:
        yield "cache: images are resized and cropped at the centre, without augmentation"


def open_caches(
    args: argparse.Namespace, model: Any, samples: SampleSet, *, precision: str
) -> Caches:
    """The caches that `--cache-locked-features` asks for.

    Args:
        model: with the weights that the run goes on with.
        precision: in which it computes.

    Raises:
        UserError: no tower's features stay the same, augmentation is asked for, or a cache is
            damaged.
    """
    if args.cache_locked_features is None:
        return Caches()
    text = text_parts(model)
    image_stays, text_stays = is_constant(model.visual), is_locked(text)
    if not image_stays and not text_stays:
        raise UserError(
            "--cache-locked-features: expected a tower whose features stay the same: --lock-image "
            "without unlocked groups, and with --lock-image-freeze-bn-stats if it has BatchNorms; "
            "or --lock-text without unlocked layers, and with --lock-text-freeze-layer-norm; "
            "got neither"
        )
    if image_stays and args.aug_cfg:
        raise UserError(
            "--aug-cfg: --cache-locked-features shows the locked image tower each image once, "
            f"without augmentation; expected none; got {args.aug_cfg}"
        )
    folder = Path(args.cache_locked_features)
    shared = {"samples": samples.fingerprint, "precision": precision}
    image_cache = text_cache = None
    if image_stays:
        pixels = f"{_PIXELS}; {image_size(model)}; {args.image_mean}; {args.image_std}"
        key = {"tower": _fingerprint([model.visual]), "pixels": pixels}
        image_cache = FeatureCache(folder, "image", samples=len(samples), key=shared | key)
    if text_stays:
        described = [model.text] if hasattr(model, "text") else []
        tower = _fingerprint(text, described)
        key = {
            "tower": tower,
            "context_length": str(model.context_length),
            "caption_key": str(args.caption_key),
        }
        text_cache = FeatureCache(folder, "text", samples=len(samples), key=shared | key)
    return Caches(image_cache, text_cache)


def _fingerprint(parts: Iterable[Part], described: Iterable[nn.Module] = ()) -> str:
    """Of the parts' weights, and how they and the `described` compute."""
    state: dict[str, Tensor] = {}
    modules = list(described)
    for number, part in enumerate(parts):
        if isinstance(part, nn.Module):
            modules.append(part)
            state |= {f"{number}.{name}": x for name, x in part.state_dict().items()}
        else:
            state[str(number)] = part
    untold = [
        (name, str(getattr(inner, name)))
        for module in modules
        for inner in module.modules()
        for name in _UNTOLD
        if hasattr(inner, name)
    ]
    return fingerprint(state, f"{modules} {untold}")
