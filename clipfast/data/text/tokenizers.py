"""Which tokenizer a model's text tower wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

from torch import Tensor, nn

from clipfast.adapters.patches import is_replaced
from clipfast.data.text.hf_tokenizer import HFTokenizer
from clipfast.data.text.tokenizer import tokenize
from clipfast.models.clip import TwoTowers
from clipfast.models.hf_text import HFTextTower
from clipfast.packed_text import PackedText


def tokenizer_for(model: Any) -> Callable[[Sequence[str]], PackedText | Tensor]:
    """Captions to what ``model.encode_text`` takes: packed, but for those of open_clip's own models
    that have a tokenizer of their own, or that `clipfast.accelerate` cannot pack.

    Raises:
        UserError: a Hugging Face tokenizer that cannot be had or read.
    """
    text = getattr(model, "text", None)
    if isinstance(text, HFTextTower):
        return _hf_tokenizer(text.tokenizer_name, text.context_length)
    own: Callable[[Sequence[str]], Tensor] | None = getattr(model, "tokenizer", None)
    if own is not None:
        return own
    return partial(tokenize, context_length=model.context_length, packed=_takes_packed(model, text))


def _takes_packed(model: Any, text: Any) -> bool:
    if isinstance(model, TwoTowers):
        return True
    return any(isinstance(m, nn.Module) and is_replaced(m) for m in (model, text))


_hf_tokenizer = lru_cache(8)(HFTokenizer)
