"""clipfast: CLIP training, faster; a drop-in for open_clip's trainer, and its parts to import."""

from clipfast.data.tokenizer import tokenize
from clipfast.eval.zero_shot import zero_shot_classifier
from clipfast.models.factory import create_model
from clipfast.models.weights import load_checkpoint, save_checkpoint
from clipfast.packed_text import PackedText

__version__ = "0.1.0"
__all__ = [
    "PackedText",
    "create_model",
    "load_checkpoint",
    "save_checkpoint",
    "tokenize",
    "zero_shot_classifier",
]
