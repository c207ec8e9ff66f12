"""A faulty model configuration is one sentence as it is read, never a traceback later."""

import copy
import json
import math

import pytest

from clipfast.errors import UserError
from clipfast.models.config import model_names, parse_model_config, read_model_config

VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
RESNET = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None}
CONV = {"tower": "conv", "image_size": 32, "channels": [8, 16]}
TEXT = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}


def raw(vision=VIT, text=TEXT, **rest):
    return copy.deepcopy({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text} | rest)


@pytest.mark.parametrize("vision", [VIT, VIT | {"mlp_ratio": 4}, RESNET, CONV])
def test_what_open_clip_builds_is_accepted(vision):
    assert parse_model_config(raw(vision, quick_gelu=True)).quick_gelu


@pytest.mark.parametrize("name", model_names())
def test_every_built_in_configuration_passes_its_own_checks(name):
    assert read_model_config(name).text.vocab_size == 49408


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"width": "64"}, "width: expected an integer of at least 1; got '64'"),
        ({"width": -64}, "width: expected an integer of at least 1; got -64"),
        ({"width": 64.0}, "width: expected an integer of at least 1; got 64.0"),
        ({"layers": 0}, "layers: expected an integer of at least 1; got 0"),
        ({"layers": True}, "layers: expected an integer of at least 1; got True"),
        ({"patch_size": 0}, "patch_size: expected an integer of at least 1; got 0"),
        ({"patch_size": None}, "patch_size: expected an integer of at least 1; got None"),
        ({"patch_size": 64}, "image_size: expected a multiple of patch_size, 64; got 32"),
        ({"patch_size": 7}, "image_size: expected a multiple of patch_size, 7; got 32"),
        ({"head_width": 48}, "width: expected a multiple of head_width, 48; got 64"),
        ({"head_width": 128}, "width: expected a multiple of head_width, 128; got 64"),
        ({"mlp_ratio": math.nan}, "mlp_ratio: expected a finite number above 0; got nan"),
        ({"mlp_ratio": math.inf}, "mlp_ratio: expected a finite number above 0; got inf"),
        ({"mlp_ratio": 0}, "mlp_ratio: expected a finite number above 0; got 0"),
        ({"mlp_ratio": "4"}, "mlp_ratio: expected a finite number above 0; got '4'"),
        ({"mlp_ratio": True}, "mlp_ratio: expected a finite number above 0; got True"),
        ({"tower": "cone"}, "expected fields among .*; got tower"),
    ],
)
def test_a_vision_transformer_that_cannot_be_built_is_refused(change, sentence):
    with pytest.raises(UserError, match=f"^my.json: vision_cfg: {sentence}$"):
        parse_model_config(raw(VIT | change), "my.json")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"layers": [1, 1, 1]}, r"layers: expected four stages; got \[1, 1, 1\]"),
        ({"layers": []}, r"layers: expected a list of integers of at least 1; got \[\]"),
        ({"layers": [1, 1, 1, 0]}, r"layers: expected a list of integers .*; got \[1, 1, 1, 0\]"),
        ({"layers": [1, 1, 1, "1"]}, "layers: expected a list of integers .*; got .*'1'.*"),
        ({"image_size": 48}, "image_size: expected a multiple of the stride, 32; got 48"),
        ({"width": 1, "head_width": 32}, "width: expected at least 2, .*; got 1"),
        ({"head_width": 512}, "32·width: expected a multiple of head_width, 512; got 256"),
    ],
)
def test_a_resnet_that_cannot_be_built_is_refused(change, sentence):
    with pytest.raises(UserError, match=f"^my.json: vision_cfg: {sentence}$"):
        parse_model_config(raw(RESNET | change), "my.json")


@pytest.mark.parametrize("channels", [8, [], [8, 0], [8, True], "88"])
def test_a_conv_tower_without_a_list_of_channels_is_refused(channels):
    with pytest.raises(UserError, match="vision_cfg: channels: expected a list of integers"):
        parse_model_config(raw(CONV | {"channels": channels}))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"heads": 3}, "width: expected a multiple of heads, 3; got 32"),
        ({"heads": 0}, "heads: expected an integer of at least 1; got 0"),
        ({"context_length": 1}, "context_length: expected an integer of at least 2; got 1"),
        ({"vocab_size": 49407}, "vocab_size: expected an integer of at least 49408; got 49407"),
        ({"layers": [2]}, r"layers: expected an integer of at least 1; got \[2\]"),
    ],
)
def test_a_text_tower_that_cannot_be_built_or_fed_is_refused(change, sentence):
    with pytest.raises(UserError, match=f"^my.json: text_cfg: {sentence}$"):
        parse_model_config(raw(text=TEXT | change), "my.json")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"embed_dim": "8"}, "embed_dim: expected an integer of at least 1; got '8'"),
        ({"embed_dim": 0}, "embed_dim: expected an integer of at least 1; got 0"),
        ({"embed_dim": -8}, "embed_dim: expected an integer of at least 1; got -8"),
        ({"embed_dim": False}, "embed_dim: expected an integer of at least 1; got False"),
        ({"quick_gelu": "no"}, "quick_gelu: expected true or false; got 'no'"),
        ({"quick_gelu": 1}, "quick_gelu: expected true or false; got 1"),
        ({"vision_cfg": None}, "vision_cfg: expected an object of fields; got None"),
        ({"vision_cfg": [VIT]}, r"vision_cfg: expected an object of fields; got \[.*\]"),
        ({"text_cfg": None}, "text_cfg: expected an object of fields; got None"),
        ({"text_cfg": []}, r"text_cfg: expected an object of fields; got \[\]"),
        ({"vision_cfg": {}}, "vision_cfg: expected the fields layers, width, patch_size; got none"),
    ],
)
def test_a_faulty_model_is_refused_by_field(change, sentence):
    with pytest.raises(UserError, match=f"^my.json: {sentence}"):
        parse_model_config(raw() | change, "my.json")


def test_a_faulty_file_is_named_by_its_path(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(raw(VIT | {"mlp_ratio": math.nan})))
    with pytest.raises(UserError, match=r"bad\.json: vision_cfg: mlp_ratio: expected .*; got nan"):
        read_model_config(str(path))
