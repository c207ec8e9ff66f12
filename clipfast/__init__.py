"""clipfast: CLIP training, faster; a drop-in for open_clip's trainer, and its parts to import.

The names below are imported when they are first used, so that the command line can prepare the
process before torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipfast.adapters.acceleration import accelerate, undo
    from clipfast.data.text.tokenizer import tokenize
    from clipfast.eval.zero_shot import zero_shot_classifier
    from clipfast.losses import ClipLoss, SigLipLoss
    from clipfast.models.factory import create_model
    from clipfast.packed_text import PackedText
    from clipfast.weights.checkpoint import save_checkpoint
    from clipfast.weights.loading import load_checkpoint

    __version__: str

__all__ = [
    "ClipLoss",
    "PackedText",
    "SigLipLoss",
    "accelerate",
    "create_model",
    "load_checkpoint",
    "save_checkpoint",
    "tokenize",
    "undo",
    "zero_shot_classifier",
]

_HOME = {
    "ClipLoss": "clipfast.losses",
    "PackedText": "clipfast.packed_text",
    "SigLipLoss": "clipfast.losses",
    "accelerate": "clipfast.adapters.acceleration",
    "create_model": "clipfast.models.factory",
    "load_checkpoint": "clipfast.weights.loading",
    "save_checkpoint": "clipfast.weights.checkpoint",
    "tokenize": "clipfast.data.text.tokenizer",
    "undo": "clipfast.adapters.acceleration",
    "zero_shot_classifier": "clipfast.eval.zero_shot",
}


def __getattr__(name: str) -> object:
    if name == "__version__":  # pyproject.toml's, which installing writes down
        return import_module("importlib.metadata").version("clipfast")
    if name not in _HOME:
        raise AttributeError(f"module 'clipfast' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
