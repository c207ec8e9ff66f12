"""Published models: their sizes are told by their weights, and Hugging Face's names are theirs."""

import open_clip
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from clipfast.errors import UserError
from clipfast.models.config import ModelConfig, parse_model_config
from clipfast.models.factory import build_model
from clipfast.weights.architecture import infer_config, open_clip_json
from clipfast.weights.huggingface import (
    config_from_huggingface,
    config_to_huggingface,
    from_huggingface,
    to_huggingface,
)
from clipfast.weights.names import with_text_prefix

RESNETS = ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"]
VITS = ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336"]


def published(names):
    return [name + suffix for name in names for suffix in ("", "-quickgelu")]


def read(name) -> ModelConfig:
    return parse_model_config(open_clip.get_model_config(name))


def state_dict_of(config):
    with torch.device("meta"):
        return build_model(config).state_dict()


@pytest.mark.parametrize("name", published(RESNETS + VITS))
def test_a_published_models_weights_tell_its_configuration(name):
    config = read(name)
    state = state_dict_of(config)
    for form in (state, with_text_prefix(state)):
        assert parse_model_config(infer_config(form, config.quick_gelu)) == config


@pytest.mark.parametrize("name", published(RESNETS + VITS))
def test_open_clip_builds_a_published_model_from_the_json_that_is_written(name):
    config = read(name)
    assert parse_model_config(open_clip_json(config)) == config
    with torch.device("meta"):
        theirs = open_clip.CLIP(**open_clip_json(config)).state_dict()
    expected = {name: tensor.shape for name, tensor in state_dict_of(config).items()}
    assert {name: tensor.shape for name, tensor in theirs.items()} == expected


@pytest.mark.parametrize("name", published(VITS))
def test_a_published_vits_names_and_shapes_are_clip_models_and_come_back(name):
    config = read(name)
    state = state_dict_of(config)
    raw = config_to_huggingface(config, torch.float32)
    with torch.device("meta"):
        theirs = CLIPModel(CLIPConfig(**raw))
    converted = to_huggingface(state)
    expected = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in converted.items()} == expected
    back = from_huggingface(converted, "a")
    assert {n: t.shape for n, t in back.items()} == {n: t.shape for n, t in state.items()}
    for written in (raw, theirs.config.to_dict()):
        assert parse_model_config(config_from_huggingface(written, "a")) == config


@pytest.mark.parametrize(("width", "mlp_width"), [(112, 976), (112, 8096), (1408, 6144), (64, 1)])
def test_the_mlps_width_survives_its_way_through_a_ratio(width, mlp_width):
    tower = {"hidden_size": width, "intermediate_size": mlp_width, "num_attention_heads": 1}
    raw = {"model_type": "clip", "text_config": tower, "vision_config": tower}
    config = parse_model_config(config_from_huggingface(raw, "a"))
    assert int(config.vision.width * config.vision.mlp_ratio) == mlp_width
    written = config_to_huggingface(config, torch.float32)
    assert written["text_config"]["intermediate_size"] == mlp_width


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"text_projection": None}, "text_projection is missing"),
        ({"visual.conv1.weight": None}, r"visual\.conv1\.weight is missing"),
        ({"visual.conv1.weight": torch.ones(3)}, "got other shapes"),
        ({"visual.positional_embedding": torch.ones(0, 3)}, "got other shapes"),
        ({"visual.class_embedding": None}, r"visual\.layer1\.0\.conv1\.weight is missing"),
    ],
)
def test_weights_that_do_not_tell_a_size_are_one_sentence(change, sentence):
    state = state_dict_of(read("ViT-B-32")) | change
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    with pytest.raises(UserError, match=f"a ViT or ResNet image tower; {sentence}$"):
        infer_config(state, True)
