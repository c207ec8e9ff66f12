"""Captions to the token ids of a Hugging Face model: open_clip's, without the padding."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from clipfast.data.text.cleaning import single_spaced
from clipfast.errors import UserError
from clipfast.models.hf_loading import load_pretrained
from clipfast.packed_text import PackedText, pack_ids


class HFTokenizer:
    """A model's own tokenizer after open_clip's cleaning; safe from several threads.

    Ids are those of ``open_clip.tokenizer.HFTokenizer(name, context_length)`` that are not its pad
    token's. So the pad token's name in a caption leaves nothing either; open_clip masks it, but
    still counts it as a place.

    Args:
        name: a folder, or a name on the hub, with a tokenizer.
        context_length: longer captions are cut, as the tokenizer does that.

    Raises:
        UserError: transformers is not installed, or the tokenizer cannot be had or read.
    """

    def __init__(self, name: str, context_length: int) -> None:
        self.context_length = context_length
        self._tokenizer = load_pretrained("AutoTokenizer", name)
        special = self._tokenizer.num_special_tokens_to_add()
        if context_length <= special:
            raise UserError(
                f"context_length: expected more than the tokenizer's {special} special tokens; "
                f"got {context_length}"
            )
        pad_id = self._tokenizer.pad_token_id
        # Where one token pads and ends, it ends: there is no padding.
        self._left_out = None if pad_id == self._tokenizer.eos_token_id else pad_id
        # Its truncation is state, which a first call sets and another must not read meanwhile.
        self._lock = threading.Lock()

    def __call__(self, captions: Sequence[str]) -> PackedText:
        """B captions -> ids from start to end token."""
        cleaned = [single_spaced(caption) for caption in captions]
        if not cleaned:
            return pack_ids([])
        with self._lock:
            rows = self._tokenizer(
                cleaned,
                truncation=True,
                max_length=self.context_length,
                padding=False,
                return_attention_mask=False,
            ).input_ids
        out = self._left_out
        return pack_ids([[i for i in row if i != out] if out in row else row for row in rows])
