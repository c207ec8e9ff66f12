"""Interpolations and resize modes show open_clip's pixels, and a model's own choice is found."""

import io
import json
from random import Random

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform, merge_preprocess_dict
from pictures import PICTURES, SIZE, as_tensor, difference
from PIL import Image

from clipfast.data.images.augmentation import Augmentation
from clipfast.data.images.decoders import choose_decoder, has_dali
from clipfast.data.images.native import NativeDecoder
from clipfast.data.images.preprocess import Preprocess, View
from clipfast.errors import UserError
from clipfast.models.factory import preprocess_of

VIEWS = [
    View(interpolation, mode)
    for mode in ("shortest", "longest", "squash")
    for interpolation in ("bicubic", "bilinear")
]


def open_clip_pixels(data, view, size=SIZE):
    transform = image_transform(
        size, is_train=False, interpolation=view.interpolation, resize_mode=view.resize_mode
    )
    transform.transforms = transform.transforms[:-2]  # before it makes floats
    return as_tensor(transform(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("view", VIEWS[1:], ids=lambda view: "-".join(vars(view).values()))
def test_evaluation_shows_every_kind_of_picture_as_open_clip_does(view):
    decoder = NativeDecoder(SIZE, Augmentation(), view)
    pictures = {name: data for name, data in PICTURES.items() if name != "3 × 1500"}
    pixels, faults = decoder(list(pictures.values()), None)
    assert not faults
    for shown, (name, data) in zip(pixels, pictures.items(), strict=True):
        assert difference(shown, open_clip_pixels(data, view)) <= 2, name


def test_a_side_that_would_vanish_keeps_one_pixel():
    pixels = NativeDecoder(32, Augmentation(), View(resize_mode="longest"))(
        [PICTURES["3 × 1500"]], None
    ).pixels
    assert pixels[0, :, 15:16].any()
    assert not pixels[0, :, :15].any()
    assert not pixels[0, :, 16:].any()


def test_fast_jpeg_stays_close_in_every_view():
    data = PICTURES["large photo"]
    for view in VIEWS:
        exact, fast = (
            NativeDecoder(SIZE, Augmentation(), view, fast_jpeg=fast)([data], None).pixels.float()
            for fast in (False, True)
        )
        assert 0 < (exact - fast).abs().mean() < 4


@pytest.mark.skipif(not has_dali(), reason="NVIDIA DALI is not installed")
def test_dali_shows_what_it_cannot_resize_natively():
    from clipfast.data.images.dali import DaliDecoder

    view = View("bilinear", "squash")
    options = {"device": torch.device("cpu"), "threads": 1, "max_batch": 4}
    decoder = DaliDecoder(SIZE, Augmentation(), view, **options)
    data = PICTURES["large photo"]
    assert difference(decoder([data], None).pixels[0], open_clip_pixels(data, view)) <= 2
    trained = decoder([data], [Random(0)]).pixels[0]
    assert difference(trained, NativeDecoder(SIZE, Augmentation())([data], [Random(0)])[0][0]) <= 3


def test_training_crops_are_bilinear_with_timm_alone_as_in_open_clip():
    data = PICTURES["large photo"]
    image = Image.open(io.BytesIO(data))
    for more, interpolation in (({}, "bicubic"), ({"use_timm": True}, "bilinear")):
        cfg = {"scale": (0.3, 0.9), **more}
        options = {"aug_cfg": cfg, "interpolation": "bilinear"}
        theirs = image_transform(SIZE, is_train=True, **options).transforms[0].interpolation
        assert theirs.value == interpolation
        augmentation = Augmentation.of(cfg, "bilinear")
        top, left, height, width = augmentation.draw(image.height, image.width, Random(0)).box
        crop = image.crop((left, top, left + width, top + height))
        resized = crop.resize((SIZE, SIZE), Image.Resampling[interpolation.upper()])
        shown = NativeDecoder(SIZE, augmentation)([data], [Random(0)]).pixels[0]
        assert difference(shown, as_tensor(resized)) <= 2


def test_random_interpolation_draws_either_after_all_else():
    cfg = {"use_timm": True, "scale": (0.3, 0.9)}
    drawn = [Augmentation.of(cfg, "random").draw(100, 80, Random(seed)) for seed in range(20)]
    assert {draw.interpolation for draw in drawn} == {"bicubic", "bilinear"}
    plain = [Augmentation.of(cfg).draw(100, 80, Random(seed)) for seed in range(20)]
    assert [draw._replace(interpolation="bicubic") for draw in drawn] == plain
    assert Preprocess(interpolation="random").view == View("bicubic")


def test_dali_is_not_taken_for_bilinear_crops():
    bilinear = Augmentation.of({"use_timm": True}, "bilinear")
    options = {"size": 32, "augmentation": bilinear, "threads": 1, "max_batch": 4}
    assert choose_decoder("auto", device=torch.device("cuda"), **options).name == "native"
    if has_dali():
        with pytest.raises(UserError, match="--image-interpolation bilinear: expected --decoder"):
            choose_decoder("dali", device=torch.device("cpu"), **options)


@pytest.mark.parametrize(
    ("model", "tag"),
    [("ViT-B-16-SigLIP", "webli"), ("ViT-B-32", "openai"), ("ViT-L/14@336px", "openai")],
)
def test_a_tags_images_are_shown_as_open_clip_shows_them(model, tag):
    known = open_clip.get_pretrained_cfg(model.replace("/", "-").replace("@336px", "-336"), tag)
    expected = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), known))
    found = preprocess_of(model, tag)
    for name in ("mean", "std", "interpolation", "resize_mode"):
        assert getattr(found, name) == getattr(expected, name), name


def test_a_folders_own_configuration_is_taken(tmp_path):
    wanted = {"mean": [0.1, 0.2, 0.3], "interpolation": "bilinear", "resize_mode": "squash"}
    content = {"model_cfg": {}, "preprocess_cfg": wanted | {"size": 99, "fill_color": 0}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    found = preprocess_of(f"local-dir:{tmp_path}")
    assert (found.mean, found.view) == ((0.1, 0.2, 0.3), View("bilinear", "squash"))
    assert found.std == Preprocess().std
    assert preprocess_of("RN50", tmp_path) == found
    assert preprocess_of("RN50") == Preprocess()


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"mean": 0.5}, "mean: expected three finite numbers; got 0.5"),
        ({"interpolation": "lanczos"}, "interpolation: expected one of bicubic.*; got 'lanczos'"),
        ({"resize_mode": ["squash"]}, r"resize_mode: expected one of .*; got \['squash'\]"),
        ({"fill_color": 128}, "fill_color: expected 0, black; got 128"),
    ],
)
def test_what_cannot_be_shown_is_named(tmp_path, wanted, sentence):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": wanted}))
    with pytest.raises(UserError, match=f"open_clip_config.json: {sentence}"):
        preprocess_of(str(tmp_path))
