"""Pixels equal those of open_clip's transforms on PIL, to 2/255."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pil_transforms

from clipfast.data.decode import CorruptImageError, RandomCrop, decode, eval_pixels, train_pixels
from clipfast.data.normalize import CLIP_MEAN, CLIP_STD, Normalize

PHOTO = Image.fromarray(load_sample_image("china.jpg"))


def encoded(image, form="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def largest_difference(pixels, pil_image):
    expected = torch.from_numpy(np.array(pil_image.convert("RGB"))).permute(2, 0, 1)
    return (pixels.int() - expected.int()).abs().max().item()


def test_evaluation_pixels_equal_resize_and_centre_crop_of_pil():
    data = encoded(PHOTO, quality=90)
    resized = pil_transforms.resize(
        Image.open(io.BytesIO(data)), 224, interpolation=InterpolationMode.BICUBIC
    )
    assert largest_difference(eval_pixels(data, 224), pil_transforms.center_crop(resized, 224)) <= 2


def test_training_pixels_equal_the_same_crop_of_pil():
    data = encoded(PHOTO, quality=90)
    crop = RandomCrop(scale=(0.3, 0.9))
    top, left, height, width = crop.box(*PHOTO.size[::-1], np.random.default_rng(5))
    expected = pil_transforms.resized_crop(
        Image.open(io.BytesIO(data)),
        top, left, height, width, [224, 224],
        interpolation=InterpolationMode.BICUBIC,
    )  # fmt: skip
    pixels = train_pixels(data, 224, crop, np.random.default_rng(5))
    assert largest_difference(pixels, expected) <= 2


@pytest.mark.parametrize("size", [(500, 480), (640, 427), (50, 400), (1, 1)])
def test_random_boxes_lie_inside_the_image_and_have_the_asked_area(size):
    width, height = size
    areas = []
    for seed in range(300):
        top, left, h, w = RandomCrop().box(height, width, np.random.default_rng(seed))
        assert 0 <= top <= height - h
        assert 0 <= left <= width - w
        areas.append(h * w / (height * width))
    if size == (500, 480):
        assert min(areas) > 0.88
        assert np.mean(areas) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "RGBA", "P"])
def test_every_colour_mode_becomes_rgb(mode):
    form = "PNG" if mode in ("RGBA", "P") else "JPEG"
    pixels = decode(encoded(PHOTO.resize((40, 30)).convert(mode), form))
    assert pixels.shape == (3, 30, 40)
    assert pixels.dtype == torch.uint8


def test_a_png_of_16_bits_is_scaled_and_not_wrapped():
    grey = Image.fromarray(np.full((4, 5), 40000, np.uint16))
    assert decode(encoded(grey, "PNG")).unique().tolist() == [156]


def test_an_animation_is_refused_as_no_image():
    frames = [PHOTO.resize((8, 8)), PHOTO.resize((8, 8)).rotate(90)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(CorruptImageError, match="got an animation of 2"):
        decode(data)


def test_exif_orientation_is_ignored_as_open_clip_ignores_it():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(PHOTO.resize((40, 30)), exif=exif)).shape == (3, 30, 40)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", b"no image at all", encoded(PHOTO)[:5000]],
    ids=["empty", "header only", "text", "truncated"],
)  # fmt: skip
def test_damaged_bytes_are_an_error_with_a_sentence(data):
    with pytest.raises(CorruptImageError, match="image"):
        decode(data)


def test_normalisation_is_that_of_torchvision():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    expected = pil_transforms.normalize(images / 255, CLIP_MEAN, CLIP_STD)
    torch.testing.assert_close(Normalize()(images), expected, rtol=1e-5, atol=1e-6)
