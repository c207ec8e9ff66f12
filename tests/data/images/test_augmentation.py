"""Augmentations are open_clip's, drawn from one generator per sample."""

from random import Random

import numpy as np
import pytest
from open_clip.transform import image_transform
from torchvision import transforms

from clipfast.data.images.augmentation import Augmentation
from clipfast.errors import UserError


@pytest.mark.parametrize("size", [(500, 480), (640, 427), (50, 400), (1, 1), (1, 5000)])
def test_random_boxes_lie_inside_the_image_and_have_the_asked_area(size):
    width, height = size
    areas = []
    for seed in range(300):
        top, left, h, w = Augmentation().draw(height, width, Random(seed)).box
        assert 0 <= top <= height - h
        assert 0 <= left <= width - w
        assert h > 0
        assert w > 0
        areas.append(h * w / (height * width))
    if size == (500, 480):
        assert min(areas) > 0.88
        assert np.mean(areas) == pytest.approx(0.95, abs=0.02)


def test_an_image_too_long_for_every_try_gets_torchvisions_central_box():
    crop = transforms.RandomResizedCrop.get_params
    image = transforms.functional.to_pil_image(np.zeros((40, 400), np.uint8))
    box = Augmentation().draw(40, 400, Random(0)).box
    assert tuple(box) == crop(image, [0.9, 1.0], [3 / 4, 4 / 3])


def test_a_draw_is_a_function_of_the_generator_alone():
    augmentation = Augmentation.of(JITTER)
    assert augmentation.draw(90, 80, Random(3)) == augmentation.draw(90, 80, Random(3))
    assert augmentation.draw(90, 80, Random(3)) != augmentation.draw(90, 80, Random(4))


JITTER = {"color_jitter": (0.4, 0.3, 0.2, 0.1), "color_jitter_prob": 0.8, "gray_scale_prob": 0.2}


def test_jitter_and_grey_come_as_often_and_as_strong_as_they_are_asked():
    draws = [Augmentation.of(JITTER).draw(9, 9, Random(seed)) for seed in range(3000)]
    assert np.mean([draw.grey for draw in draws]) == pytest.approx(0.2, abs=0.03)
    jittered = [draw.jitter for draw in draws if draw.jitter]
    assert len(jittered) / len(draws) == pytest.approx(0.8, abs=0.03)
    for name, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.7, 1.3),
        ("saturation", 0.8, 1.2),
        ("hue", -0.1, 0.1),
    ):
        factors = [dict(operations)[name] for operations in jittered]
        assert low <= min(factors) < low + 0.02
        assert high - 0.02 < max(factors) <= high
    assert len({tuple(name for name, _ in operations) for operations in jittered}) == 24


def test_brightness_never_falls_below_black():
    augmentation = Augmentation.of({"color_jitter": (3, 0, 0, 0), "color_jitter_prob": 1})
    draws = [augmentation.draw(9, 9, Random(seed)).jitter for seed in range(300)]
    assert min(factor for ((_, factor),) in draws) >= 0


def test_without_timm_open_clips_ignored_options_are_ignored():
    ignored = {"ratio": (1.0, 1.0), "color_jitter": 0.4, "re_prob": 0.3, "re_count": 2}
    assert Augmentation.of(ignored) == Augmentation()
    with pytest.warns(UserWarning, match="Unused augmentation"):
        open_clips = image_transform(32, is_train=True, aug_cfg=ignored)
    kinds = [type(step).__name__ for step in open_clips.transforms]
    assert kinds == ["RandomResizedCrop", "MaybeConvertMode", "MaybeToTensor", "Normalize"]


@pytest.mark.parametrize("jitter", [None, 0.4, (0.4, 0.3, 0.2), (0.4, 0.3, 0.2, 0.1)])
def test_timms_transform_is_the_one_that_open_clip_makes_of_it(jitter):
    cfg = {
        "use_timm": True,
        "scale": (0.5, 0.8),
        "ratio": (0.9, 1.1),
        "color_jitter": jitter,
        "color_jitter_prob": 0.3,
        "gray_scale_prob": 0.3,
    }
    crop, *colours, _, _ = image_transform(32, is_train=True, aug_cfg=cfg).transforms
    ours = Augmentation.of(cfg)
    assert (ours.scale, ours.ratio) == (crop.scale, crop.ratio)
    assert ours.gray_scale_prob == 0
    if jitter is None:
        assert colours == []
        assert ours.color_jitter_prob == 0
        return
    (step,) = colours  # no flip, and no chance
    assert ours.color_jitter_prob == 1
    brightness, contrast, saturation, hue = ours.color_jitter
    assert isinstance(step, transforms.ColorJitter)
    assert step.brightness == (1 - brightness, 1 + brightness)
    assert step.contrast == (1 - contrast, 1 + contrast)
    assert step.saturation == (1 - saturation, 1 + saturation)
    assert (step.hue or (0, 0)) == (-hue, hue)


@pytest.mark.parametrize(
    ("cfg", "sentence"),
    [
        ({"scale": (0, 1)}, "--aug-cfg: scale: expected 0 < low ≤ high ≤ 1; got (0, 1)"),
        ({"scale": "wide"}, "--aug-cfg: scale: expected 0 < low ≤ high ≤ 1; got 'wide'"),
        ({"scale": (0.5, True)}, "--aug-cfg: scale: expected"),
        ({"ratio": (2, 1)}, "--aug-cfg: ratio: expected 0 < low ≤ high; got (2, 1)"),
        ({"color_jitter": (0.1, 0.1)}, "--aug-cfg: color_jitter: expected one, three or four"),
        ({"color_jitter": (0, 0, 0, 0.6)}, "--aug-cfg: color_jitter: expected"),
        ({"color_jitter_prob": 2}, "--aug-cfg: color_jitter_prob: expected 0 to 1; got 2"),
        ({"color_jitter_prob": 0.5, "color_jitter": 0.4}, "expected four numbers with color_j"),
        ({"color_jitter_prob": 0.5}, "color_jitter: expected four numbers with color_jitter_prob"),
        ({"use_timm": 1}, "--aug-cfg: use_timm: expected True or False; got 1"),
        ({"use_timm": True, "re_prob": 0.2}, "re_prob: expected 0, as random erasing is not"),
        ({"flip": 1, "cut": 2}, "re_prob, re_count, use_timm; got cut, flip"),
    ],
)
def test_a_mistake_is_one_sentence(cfg, sentence):
    with pytest.raises(UserError) as raised:
        Augmentation.of(cfg)
    assert sentence in str(raised.value)
