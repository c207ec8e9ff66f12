"""clipfast inside open_clip_torch 3.3.0."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from clipfast.losses import ClipLoss, SigLipLoss


@contextmanager
def fast_losses() -> Iterator[None]:
    """While it is open, open_clip and its trainer make clipfast's ClipLoss and SigLipLoss.

    Losses that were made before keep their class; so do CoCa's and distillation's, which need the
    logits themselves.

    Example::

        from clipfast.adapters.open_clip import fast_losses
        from open_clip_train.main import main

        with fast_losses():
            main(["--model", "ViT-B-32", "--train-data", ...])

    Raises:
        ImportError: open_clip_torch is not installed.
    """
    import open_clip
    import open_clip.factory
    import open_clip.loss

    # Every name under which open_clip 3.3.0 finds them; create_loss looks in its own module.
    places = [
        (module, name, ours)
        for module in (open_clip, open_clip.factory, open_clip.loss)
        for name, ours in (("ClipLoss", ClipLoss), ("SigLipLoss", SigLipLoss))
        if hasattr(module, name)
    ]
    before = [getattr(module, name) for module, name, _ in places]
    try:
        for module, name, ours in places:
            setattr(module, name, ours)
        yield
    finally:
        for (module, name, _), theirs in zip(places, before, strict=True):
            setattr(module, name, theirs)
