"""Flags of the model and its images do what open_clip's do, or are refused with a reason."""

import json

import open_clip
import pytest
import torch
from torch import nn

from clipfast import create_model, tokenize
from clipfast.data.images.preprocess import View
from clipfast.errors import UserError
from clipfast.models.config import parse_model_config
from clipfast.train import parse_args
from clipfast.train.model import describe, make_model, preprocess, warnings_of
from clipfast.weights.architecture import infer_config, open_clip_json

CPU = torch.device("cpu")
TEXT = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
TIMM = {"timm_model_name": "convnext_atto", "timm_proj": "linear", "image_size": 32}
VIT = {"image_size": 32, "layers": 1, "width": 32, "head_width": 32, "patch_size": 16}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32}


def flags(*more):
    return parse_args(["--train-data", "x.tar", "--precision", "fp32", *more])


@pytest.fixture
def config(tmp_path):
    def write(name, vision, **more):
        path = tmp_path / f"{name}.json"
        raw = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT, **more}
        path.write_text(json.dumps(raw))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--torchscript"], "--torchscript: .* expected --torchcompile, or neither"),
        (["--trace"], "--trace: .* expected --torchcompile, or neither"),
        (["--use-bnb-linear", "SwitchBackLinear"], "--use-bnb-linear: .*; got 'SwitchBackLinear'"),
        (["--model", "coca_ViT-B-32"], "--model: expected a model of two towers; .*coca_ViT-B-32"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_a_reason(more, sentence):
    with pytest.raises(UserError, match=sentence):
        flags(*more)


@pytest.mark.parametrize("more", [["--image-resize-mode", "crop"], ["--image-interpolation", "x"]])
def test_a_way_to_show_images_that_open_clip_lacks_exits_with_2(more):
    with pytest.raises(SystemExit) as stop:
        flags(*more)
    assert stop.value.code == 2


def test_a_captioning_model_is_refused_whatever_its_name(config):
    multimodal = {"width": 32, "heads": 2, "layers": 1, "context_length": 32, "vocab_size": 49408}
    path = config("painter", VIT, custom_text=True, multimodal_cfg=multimodal)
    with pytest.raises(UserError, match="--model: expected a model of two towers"):
        make_model(flags("--model", path), CPU)


def test_weights_without_a_bias_start_the_sigmoid_loss_from_0_as_in_open_clip(config, tmp_path):
    path = config("tiny", VIT)
    torch.save(create_model(path).state_dict(), tmp_path / "softmax.pt")
    started = ["--model", path, "--pretrained", str(tmp_path / "softmax.pt")]
    model = make_model(flags(*started, "--siglip"), CPU)
    open_clip.add_model_config(path)
    theirs = open_clip.create_model("tiny", str(tmp_path / "softmax.pt"), init_logit_bias=-10)
    assert model.logit_bias.item() == theirs.logit_bias.item() == 0
    assert model.logit_scale.item() == theirs.logit_scale.item()
    assert model(torch.zeros(1, 3, 32, 32), tokenize([""], context_length=32))[3] == 0


def test_open_clips_own_models_get_the_sigmoid_losss_start_too(config):
    path = config("average", VIT | {"pool_type": "avg"})
    model = make_model(flags("--model", path, "--siglip"), CPU)
    assert type(model).__module__ == "open_clip.model"
    assert model.logit_bias.item() == -10
    assert model.logit_scale.exp().item() == pytest.approx(10)


def test_a_bias_is_told_by_weights_and_written_for_open_clip(config):
    vision = VIT | {"width": 64, "head_width": 64}  # as weights cannot tell it
    model = create_model(config("siglip", vision, init_logit_bias=-10, init_logit_scale=2.0))
    assert (model.logit_bias.item(), model.logit_scale.item()) == (-10, 2)
    raw = infer_config(model.state_dict(), quick_gelu=False)
    assert raw["init_logit_bias"] == -10
    parsed = parse_model_config(raw | {"init_logit_scale": 2.0})
    assert parse_model_config(open_clip_json(parsed)) == parsed
    assert open_clip.CLIP(**open_clip_json(parsed)).logit_bias.item() == -10


def test_a_custom_text_tower_has_open_clips_names(config):
    path = config("plain", VIT)
    model = make_model(flags("--model", path, "--force-custom-text"), CPU)
    open_clip.add_model_config(path)
    theirs = open_clip.create_model("plain", force_custom_text=True)
    assert list(model.state_dict()) == list(theirs.state_dict())
    assert "text.token_embedding.weight" in model.state_dict()


def test_timms_weights_and_the_cache_are_asked_of_open_clip(config, monkeypatch, tmp_path):
    asked = {}

    def create(name, **options):
        asked.update(options)
        raise RuntimeError("no network here")

    monkeypatch.setattr(open_clip, "create_model", create)
    cached = ["--pretrained-image", "--cache-dir", str(tmp_path)]
    with pytest.raises(UserError, match="open_clip cannot build it: no network here"):
        make_model(flags("--model", config("timm", TIMM), *cached), CPU)
    assert asked["pretrained_image"]
    assert asked["cache_dir"] == str(tmp_path)


def test_a_tags_weights_are_looked_for_in_the_cache_folder(monkeypatch, tmp_path):
    asked = {}

    def download(known, cache_dir=None):
        asked.update(known, cache_dir=cache_dir)
        raise OSError("no network here")

    monkeypatch.setattr(open_clip, "download_pretrained", download)
    with pytest.raises(UserError, match="--pretrained openai: the weights cannot be fetched"):
        make_model(flags("--pretrained", "openai", "--cache-dir", str(tmp_path)), CPU)
    assert asked["cache_dir"] == str(tmp_path)


def test_flags_that_change_nothing_are_told_of(config):
    args = flags("--model", config("tiny", VIT), "--pretrained-image")
    lines = list(describe(args, make_model(args, CPU), CPU))
    assert any(line.startswith("--pretrained-image: ") for line in lines)
    (line,) = warnings_of(flags("--coca-caption-loss-weight", "3"), CPU)
    assert line.startswith("--coca-*-loss-weight: ")
    assert not list(warnings_of(flags(), CPU))


def test_one_process_has_nothing_to_synchronise(config):
    model = make_model(flags("--model", config("resnet", RESNET), "--use-bn-sync"), CPU)
    assert type(model.visual.bn1) is nn.BatchNorm2d


def test_flags_come_before_the_pretrained_models_own_images():
    tagged = ["--model", "ViT-B-16-SigLIP", "--pretrained", "webli"]
    found = preprocess(flags(*tagged))
    assert (found.mean, found.view) == ((0.5,) * 3, View("bicubic", "squash"))
    more = ["--image-mean", ".1", ".2", ".3", "--image-interpolation", "bilinear"]
    found = preprocess(flags(*tagged, *more, "--image-resize-mode", "longest"))
    assert (found.mean, found.view) == ((0.1, 0.2, 0.3), View("bilinear", "longest"))
    assert found.std == (0.5,) * 3
