"""Which locked towers' features are kept on disk, and under which key."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipfast.data.feature_cache import FeatureCache
from clipfast.data.loader import Caches
from clipfast.data.sources.sample_set import SampleSet
from clipfast.errors import UserError
from clipfast.models.locking import is_constant, is_locked, text_parts
from clipfast.models.tower_keys import image_key, tower_fingerprint
from clipfast.train.model import preprocess


def describe(caches: Caches) -> Iterator[str]:
    """Lines of the log."""
    for cache in caches:
        if cache is not None:
            yield (
                f"cache: {cache.kind} features in {cache.path}, "
                f"{cache.filled:,} of {cache.samples:,} there"
            )
    if caches.image is not None:
        yield "cache: images are shown as in evaluation, without augmentation"


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
        key = image_key(model, preprocess(args))
        image_cache = FeatureCache(folder, "image", samples=len(samples), key=shared | key)
    if text_stays:
        described = [model.text] if hasattr(model, "text") else []
        tower = tower_fingerprint(text, described)
        key = {
            "tower": tower,
            "context_length": str(model.context_length),
            "caption_key": str(args.caption_key),
        }
        text_cache = FeatureCache(folder, "text", samples=len(samples), key=shared | key)
    return Caches(image_cache, text_cache)
