"""Captions of the parts that threads made become the captions of the batch."""

import torch

from clipfast.data.batch import join_text
from clipfast.packed_text import PackedText, pack_ids


def test_packed_parts_join_in_their_order():
    rows = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]]
    joined = join_text([pack_ids(rows[:1]), pack_ids(rows[1:3]), pack_ids(rows[3:])])
    assert isinstance(joined, PackedText)
    for part, whole in zip(joined, pack_ids(rows), strict=True):
        assert torch.equal(part, whole)
        assert part.dtype == whole.dtype


def test_padded_parts_join_in_their_order():
    rows = torch.arange(20).reshape(5, 4)
    assert torch.equal(join_text([rows[:2], rows[2:3], rows[3:]]), rows)


def test_no_captions_are_an_empty_pack():
    joined = join_text([])
    assert isinstance(joined, PackedText)
    assert (len(joined.tokens), joined.cu_seqlens.tolist()) == (0, [0])
