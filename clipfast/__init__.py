"""clipfast: CLIP training, faster; a drop-in for open_clip's trainer, and its parts to import.

The names below are imported when they are first used, so that the command line can prepare the
process before torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipfast.data.tokenizer import tokenize
    from clipfast.eval.zero_shot import zero_shot_classifier
    from clipfast.losses import ClipLoss, SigLipLoss
    from clipfast.models.factory import create_model
    from clipfast.models.weights import load_checkpoint, save_checkpoint
    from clipfast.packed_text import PackedText

__version__ = "0.1.0"
__all__ = [
    "ClipLoss",
    "PackedText",
    "SigLipLoss",
    "create_model",
    "load_checkpoint",
    "save_checkpoint",
    "tokenize",
    "zero_shot_classifier",
]

_HOME = {
    "ClipLoss": "clipfast.losses",
    "PackedText": "clipfast.packed_text",
    "SigLipLoss": "clipfast.losses",
    "create_model": "clipfast.models.factory",
    "load_checkpoint": "clipfast.models.weights",
    "save_checkpoint": "clipfast.models.weights",
    "tokenize": "clipfast.data.tokenizer",
    "zero_shot_classifier": "clipfast.eval.zero_shot",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'clipfast' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
