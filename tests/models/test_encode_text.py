"""Packed text that contradicts itself is a ValueError, never an error from inside the layout."""

import pytest
import torch

from clipfast import PackedText, create_model


@pytest.mark.parametrize(
    ("tokens", "ends", "sentence"),
    [
        (0, [0], r"cu_seqlens of shape \(B \+ 1,\), B ≥ 1 captions; got shape \(1,\)"),
        (0, [], r"got shape \(0,\)"),
        (3, [[0, 3]], r"got shape \(1, 2\)"),
        (5, [0, 2, 4], "cu_seqlens from 0 to 5, the number of tokens; got 0 to 4"),
        (5, [0, 2, 6], "cu_seqlens from 0 to 5, the number of tokens; got 0 to 6"),
        (5, [1, 2, 5], "cu_seqlens from 0 to 5, the number of tokens; got 1 to 5"),
        (5, [0, 4, 3, 5], "captions of 1 to 32 tokens; got -1 to 4"),
        (40, [0, 40], "captions of 1 to 32 tokens; got 40 to 40"),
    ],
)
def test_packed_text_whose_parts_disagree_is_refused(tokens, ends, sentence, tiny_model):
    text = PackedText(torch.ones(tokens).long(), torch.tensor(ends, dtype=torch.int32))
    with pytest.raises(ValueError, match=f"^text: expected .*{sentence}$"):
        create_model(tiny_model).encode_text(text)


@pytest.mark.parametrize("shape", [(0, 32), (2, 0)])
def test_padded_text_without_a_caption_or_a_token_is_refused(shape, tiny_model):
    with pytest.raises(ValueError, match=r"integer ids \(B, L\), B and L ≥ 1; got"):
        create_model(tiny_model).encode_text(torch.zeros(shape, dtype=torch.int64))
