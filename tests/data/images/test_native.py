"""Pixels equal those of open_clip's transforms on Pillow, to 2/255."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from pictures import (
    CROP,
    PHOTO,
    PICTURES,
    SIZE,
    SMALL,
    as_tensor,
    assert_equals_open_clip,
    difference,
    encoded,
    open_clip_eval_pixels,
)
from PIL import Image
from torchvision.transforms import functional as pil_transforms

from clipfast.data.images.augmentation import Augmentation
from clipfast.data.images.colour import recolour
from clipfast.data.images.decode import eval_pixels
from clipfast.data.images.native import NativeDecoder
from clipfast.data.images.normalize import CLIP_MEAN, CLIP_STD, Normalize
from clipfast.data.sources.samples import UnusableError


@pytest.mark.parametrize("name", PICTURES)
def test_every_kind_of_picture_is_shown_as_open_clip_shows_it(name):
    assert_equals_open_clip(NativeDecoder(SIZE, CROP), PICTURES[name])


@pytest.mark.parametrize("size", [32, 224, 336])
def test_downscaling_and_upscaling_equal_open_clips(size):
    for name in ("large photo", "small photo", "tall"):
        assert_equals_open_clip(NativeDecoder(size, CROP), PICTURES[name], size, seeds=6)


def test_a_png_of_16_bits_is_scaled_and_not_cut_off_to_white():
    grey = Image.fromarray(np.full((4, 5), 40000, np.uint16))
    pixels = eval_pixels(encoded(grey, "PNG"), 8)
    assert pixels.unique().tolist() == [156]


def test_a_long_strip_shows_its_centre_without_being_resized_as_a_whole():
    assert eval_pixels(encoded(SMALL.resize((1, 5000))), 224).shape == (3, 224, 224)
    data = encoded(PHOTO.resize((20, 500)))
    assert difference(eval_pixels(data, 32), open_clip_eval_pixels(data, 32)) <= 2


def test_exif_orientation_is_ignored_as_open_clip_ignores_it():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert torch.equal(eval_pixels(encoded(SMALL, exif=exif), 32), eval_pixels(encoded(SMALL), 32))


def test_colours_are_jittered_after_the_resize():
    data = PICTURES["large photo"]
    jitter = replace(
        CROP, color_jitter=(0.4, 0.4, 0.4, 0.1), color_jitter_prob=0.8, gray_scale_prob=0.2
    )
    plain = NativeDecoder(SIZE, CROP)([data] * 8, [Random(seed) for seed in range(8)]).pixels
    pixels = NativeDecoder(SIZE, jitter)([data] * 8, [Random(seed) for seed in range(8)]).pixels
    recolour(plain, [jitter.draw(PHOTO.height, PHOTO.width, Random(seed)) for seed in range(8)])
    assert torch.equal(pixels, plain)


def test_bad_images_are_faults_of_their_rows_and_leave_the_others_alone():
    good = PICTURES["small photo"]
    rows = [good, b"", good[:-500], PICTURES["PNG"][:2000], b"GIF89a....", good]
    decoder = NativeDecoder(SIZE, CROP)
    pixels, faults = decoder(rows, [Random(row) for row in range(6)])
    assert list(faults) == [1, 2, 3, 4]
    assert faults[1] == "empty image"
    assert faults[2].startswith("truncated JPEG")
    assert faults[3].startswith("damaged PNG: ")
    assert "GIF" in faults[4]
    assert torch.equal(pixels[5], decoder([good], [Random(5)]).pixels[0])


@pytest.mark.parametrize("name", ["palette", "transparent PNG", "transparent WebP", "WebP"])
def test_damage_that_the_header_does_not_show_is_a_fault(name):
    data = PICTURES[name]
    _, faults = NativeDecoder(SIZE, CROP)([data[: len(data) // 2]], None)
    assert faults[0].startswith("damaged ")
    assert "\n" not in faults[0]


def test_a_header_that_promises_another_size_is_a_fault():
    data = bytearray(PICTURES["PNG"])
    data[20:24] = (5000).to_bytes(4, "big")
    _, faults = NativeDecoder(SIZE, CROP)([bytes(data)], None)
    assert faults[0].startswith("damaged PNG")
    with pytest.raises(UnusableError):
        eval_pixels(bytes(data), SIZE)


def test_several_threads_give_the_pixels_of_one():
    rows = [PICTURES["large photo"], PICTURES["palette"], PICTURES["WebP"]] * 4
    decoder = NativeDecoder(SIZE, CROP)

    def decode(seed):
        return decoder(rows, [Random(seed + row) for row in range(len(rows))]).pixels

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(decode, range(4)))
    for seed, pixels in enumerate(together):
        assert torch.equal(pixels, decode(seed))


def test_fast_jpeg_stays_close_and_leaves_small_images_alone():
    exact = NativeDecoder(SIZE, Augmentation())
    fast = NativeDecoder(SIZE, Augmentation(), fast_jpeg=True)
    small, large = PICTURES["small photo"], PICTURES["large photo"]
    for randoms in (None, [Random(0)]):
        pixels = [d([small], randoms and [Random(0)]).pixels for d in (exact, fast)]
        assert torch.equal(*pixels)
        ours, theirs = (d([large], randoms and [Random(0)]).pixels.float() for d in (fast, exact))
        assert 0 < (ours - theirs).abs().mean() < 4


def test_pixels_lie_channels_last():
    pixels = NativeDecoder(SIZE, CROP)([PICTURES["PNG"]] * 3, None).pixels
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_normalisation_is_that_of_torchvision():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    expected = pil_transforms.normalize(images / 255, CLIP_MEAN, CLIP_STD)
    torch.testing.assert_close(Normalize()(images), expected, rtol=1e-5, atol=1e-6)


def test_the_reference_of_these_tests_sees_a_shift_of_one_pixel():
    shifted = as_tensor(SMALL.resize((SIZE, SIZE))).roll(1, 2)
    assert difference(shifted, as_tensor(SMALL.resize((SIZE, SIZE)))) > 2


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_png_with_one_wrong_byte_is_a_fault_and_not_a_crash(place):
    damaged = bytearray(encoded(PHOTO.resize((160, 107)), "PNG"))
    damaged[int(place * len(damaged))] ^= 0xFF
    _, faults = NativeDecoder(32, Augmentation())([bytes(damaged)], None)
    assert "damaged PNG" in faults[0]
