"""Captions of the parts that threads made become the captions of the batch."""

import numpy as np
import torch

from clipfast.data.batch import Batch, join_text
from clipfast.data.feature_cache import gather
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


def test_a_batch_splits_into_its_own_rows():
    rows = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [11], [12, 13]]
    images = torch.arange(6).reshape(6, 1, 1, 1)
    for text in (pack_ids(rows), torch.arange(18).reshape(6, 3)):
        parts = Batch(images, text, np.arange(6)).split(3)
        assert [part.images.flatten().tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
        assert [part.numbers.tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
        for whole, again in zip(text, join_text([part.text for part in parts]), strict=True):
            assert torch.equal(whole, again)


def test_a_split_batch_keeps_what_the_caches_had_beside_its_rows():
    row = np.ones(2, np.float32)
    found = gather([None, row, row, None, row, None])
    images = torch.tensor([0, 3, 5])  # those that the cache lacks
    parts = Batch(images, pack_ids([[i] for i in range(6)]), np.arange(6), image_found=found)
    first, second = parts.split(2)
    assert (first.images.tolist(), second.images.tolist()) == ([0], [3, 5])
    assert first.image_found.missing.tolist() == [0]
    assert second.image_found.missing.tolist() == [0, 2]
    assert second.image_found.features.tolist() == [[0, 0], [1, 1], [0, 0]]
