"""Captions to the token ids of a Hugging Face model: open_clip's, without the padding."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from clipfast.data.text.cleaning import single_spaced
from clipfast.errors import UserError
from clipfast.models.hf_loading import load_pretrained
from clipfast.packed_text import PackedText


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
        tokenizer = load_pretrained("AutoTokenizer", name)
        special = tokenizer.num_special_tokens_to_add()
        if context_length <= special:
            raise UserError(
                f"context_length: expected more than the tokenizer's {special} special tokens; "
                f"got {context_length}"
            )
        pad_id = tokenizer.pad_token_id
        # Where one token pads and ends, it ends: there is no padding.
        self._left_out = None if pad_id == tokenizer.eos_token_id else pad_id
        choose = _encode_without_transformers if _is_all_in_backend(tokenizer) else _encode_locked
        self._encode = choose(tokenizer, context_length)

    def __call__(self, captions: Sequence[str]) -> PackedText:
        """B captions -> ids from start to end token."""
        rows = self._encode([single_spaced(caption) for caption in captions]) if captions else []
        out = self._left_out
        rows = [[i for i in row if i != out] if out in row else row for row in rows]
        cu_seqlens = np.zeros(len(rows) + 1, np.int32)
        np.cumsum([len(row) for row in rows], out=cu_seqlens[1:])
        tokens = np.fromiter(chain.from_iterable(rows), np.int64, int(cu_seqlens[-1]))
        return PackedText(torch.from_numpy(tokens), torch.from_numpy(cu_seqlens))


_Encode = Callable[[list[str]], list[list[int]]]


def _is_all_in_backend(tokenizer: Any) -> bool:
    """transformers adds nothing to what the tokenizers package does."""
    from transformers import PreTrainedTokenizerFast as Fast

    own = type(tokenizer)
    return isinstance(tokenizer, Fast) and all(
        getattr(own, name) is getattr(Fast, name) for name in ("__call__", "_encode_plus")
    )


def _encode_without_transformers(tokenizer: Any, context_length: int) -> _Encode:
    """Lets other threads run meanwhile, and leaves out what open_clip has no use for."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.enable_truncation(context_length, direction=tokenizer.truncation_side)
    backend.encode_special_tokens = tokenizer.split_special_tokens
    encode_batch = backend.encode_batch_fast
    return lambda texts: [encoding.ids for encoding in encode_batch(texts)]


def _encode_locked(tokenizer: Any, context_length: int) -> _Encode:
    """Truncation is state, which a first call sets and another must not read meanwhile."""
    lock = threading.Lock()

    def encode(texts: list[str]) -> list[list[int]]:
        with lock:
            rows: list[list[int]] = tokenizer(
                texts,
                truncation=True,
                max_length=context_length,
                padding=False,
                return_attention_mask=False,
            ).input_ids
        return rows

    return encode
