"""The synthetic set is open_clip's: one grey image and "Dummy caption"."""

import io

import numpy as np
import pytest
from PIL import Image

from clipfast.data.sources.samples import Place
from clipfast.data.sources.synthetic import SyntheticSource
from clipfast.errors import UserError


def test_every_sample_is_open_clips():
    source = SyntheticSource(1000, 33)
    assert source.counts.sum() == 1000
    for number in (0, 999):
        image, captions, place = source.read(number)
        assert captions == (b"Dummy caption",)
        assert place == source.place(number) == Place("synthetic", number, str(number))
        pixels = np.asarray(Image.open(io.BytesIO(image)))
        np.testing.assert_array_equal(pixels, np.full((33, 33, 3), 100))
    assert source.read(5, image=False).image == b""
    assert list(source.faults()) == []


def test_another_size_has_another_fingerprint():
    assert SyntheticSource(3, 32).fingerprint != SyntheticSource(3, 64).fingerprint


def test_a_set_without_samples_is_refused():
    with pytest.raises(UserError, match="expected 1 sample or more; got 0"):
        SyntheticSource(0, 32)
