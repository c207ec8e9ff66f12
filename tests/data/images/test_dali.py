"""NVIDIA DALI's CPU operators give open_clip's pixels, and outlive bad images."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from random import Random

import pytest
import torch
from pictures import CROP, PICTURES, SIZE, assert_equals_open_clip, difference

from clipfast.data.images.native import NativeDecoder

pytest.importorskip("nvidia.dali")

from clipfast.data.images.dali import DaliDecoder


def dali(size=SIZE, augmentation=CROP):
    return DaliDecoder(size, augmentation, device=torch.device("cpu"), threads=1, max_batch=8)


@pytest.fixture(scope="module")
def decoder():
    return dali()


@pytest.mark.parametrize("name", PICTURES)
def test_every_kind_of_picture_is_shown_as_open_clip_shows_it(decoder, name):
    assert_equals_open_clip(decoder, PICTURES[name])


@pytest.mark.parametrize("size", [32, 224])
def test_downscaling_and_upscaling_equal_open_clips(size):
    decoder = dali(size)
    for name in ("large photo", "small photo", "tall"):
        assert_equals_open_clip(decoder, PICTURES[name], size)


def test_batches_of_every_size_and_mixture_give_each_images_own_pixels(decoder):
    native = NativeDecoder(SIZE, CROP)
    rows = list(PICTURES.values())
    for count in (1, 3, len(rows), 2):  # more than max_batch, too
        randoms = [[Random(row) for row in range(count)] for _ in range(2)]
        pixels, faults = decoder(rows[:count], randoms[0])
        assert not faults
        assert pixels.shape == (count, 3, SIZE, SIZE)
        assert pixels.is_contiguous(memory_format=torch.channels_last)
        assert difference(pixels, native(rows[:count], randoms[1]).pixels) <= 3  # each within 2
    assert decoder([], None).pixels.shape == (0, 3, SIZE, SIZE)


def damaged_inside():
    """A JPEG with both ends, whose tables are gone: only decoding shows it."""
    data = PICTURES["small photo"]
    tables = data.index(b"\xff\xc4")
    return data[: tables + 4] + b"\xaa" * 60 + data[tables + 64 :]


def test_bad_images_are_found_and_the_pipeline_works_on(decoder):
    good = PICTURES["small photo"]
    rows = [good, damaged_inside(), good, good[:-500], PICTURES["PNG"][:2000], b"", good]
    pixels, faults = decoder(rows, [Random(row) for row in range(7)])
    assert sorted(faults) == [1, 3, 4, 5]
    assert all("\n" not in reason for reason in faults.values())
    assert faults[1].startswith("damaged JPEG: ")
    for row in (0, 2, 6):
        again = decoder([good], [Random(row)])
        assert not again.faults
        assert torch.equal(pixels[row], again.pixels[0])


def test_colours_are_those_of_the_native_decoder():
    jitter = replace(
        CROP, color_jitter=(0.4, 0.4, 0.4, 0.0), color_jitter_prob=0.8, gray_scale_prob=0.3
    )
    data = [PICTURES["large photo"], PICTURES["palette"]] * 4
    pixels = [
        decoder(data, [Random(row) for row in range(8)]).pixels
        for decoder in (dali(augmentation=jitter), NativeDecoder(SIZE, jitter))
    ]
    # Differences of 2 are stretched by brightness, contrast and saturation of at most 1.4 each.
    assert difference(*pixels) <= 2 * 1.4**3 + 1


def test_several_threads_give_the_pixels_of_one(decoder):
    rows = [PICTURES["large photo"], PICTURES["palette"], PICTURES["WebP"]]

    def decode(seed):
        return decoder(rows, [Random(seed + row) for row in range(3)]).pixels

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(decode, range(8)))
    for seed, pixels in enumerate(together):
        assert torch.equal(pixels, decode(seed))
