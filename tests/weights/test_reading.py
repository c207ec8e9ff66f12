"""Every form that others write gives our model the features of their own class."""

import json
import shutil
from types import SimpleNamespace

import open_clip
import pytest
import torch
import weight_peers as peer
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.openai import load_openai_model
from open_clip.push_to_hf_hub import save_for_hf
from safetensors.torch import save_file
from weight_peers import KINDS, QUICK_GELU, VITS, assert_same_features

from clipfast.errors import UserError
from clipfast.models.config import parse_model_config
from clipfast.weights.reading import read_weights

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")


def scripted_archive(model, path):
    torch.jit.save(peer.scripted(model), path)


def traced_archive(model, path):
    torch.jit.save(peer.traced(model), path)


def openai_state_dict(model, path):
    torch.save(peer.openai_module(model).state_dict(), path)


def checkpoint(model, path):
    torch.save({"epoch": 3, "name": "x", "state_dict": model.state_dict(), "optimizer": {}}, path)


def bare(model, path):
    torch.save(model.state_dict(), path)


def wrapped(model, path):
    state = {f"module._orig_mod.{n}": t for n, t in model.state_dict().items()}
    torch.save({"state_dict": state}, path)


def custom_text(model, path):
    torch.save(convert_to_custom_text_state_dict(model.state_dict()), path)


def vector_logit_scale(model, path):
    state = model.state_dict()
    torch.save(state | {"logit_scale": state["logit_scale"].reshape(1)}, path)


def safetensors(model, path):
    save_file(model.state_dict(), path)


def local_dir(model, path, kind, safe=True):
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
    save_for_hf(model, tokenizer, KINDS[kind], path, safe_serialization=safe)


OPENAI = [scripted_archive, traced_archive, openai_state_dict]
OPEN_CLIP = [checkpoint, bare, wrapped, custom_text, vector_logit_scale, safetensors]


@pytest.mark.parametrize("kind", QUICK_GELU)
@pytest.mark.parametrize("write", OPENAI)
def test_openais_files_give_the_features_activation_and_sizes_of_open_clips_loader(
    kind, write, peers, tmp_path
):
    path = tmp_path / "openai.pt"
    write(peers[kind], path)
    assert_same_features(peer.our_model(kind, path), load_openai_model(str(path), "fp32", "cpu"))
    weights = read_weights(path)
    assert weights.quick_gelu is True
    assert weights.config == KINDS[kind]
    assert weights.state_dict.keys() == peers[kind].state_dict().keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("write", OPEN_CLIP)
def test_open_clips_files_give_open_clips_features(kind, write, peers, tmp_path):
    path = tmp_path / ("a.safetensors" if write is safetensors else "a.pt")
    write(peers[kind], path)
    assert_same_features(peer.our_model(kind, path), peers[kind])
    weights = read_weights(path)
    assert weights.quick_gelu is None
    assert weights.config is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_open_clips_folders_give_open_clips_features_and_configuration(kind, safe, peers, tmp_path):
    local_dir(peers[kind], tmp_path / "a", kind, safe)
    assert_same_features(
        peer.our_model(kind, tmp_path / "a"), peer.open_clip_model(f"local-dir:{tmp_path / 'a'}")
    )
    weights = read_weights(tmp_path / "a")
    assert weights.quick_gelu is KINDS[kind]["quick_gelu"]
    assert weights.config == KINDS[kind]


@pytest.mark.parametrize("kind", VITS)
@pytest.mark.parametrize("files", ["one", "sharded", "bin"])
def test_hugging_faces_folders_give_clip_models_features_and_configuration(kind, files, tmp_path):
    model, folder = peer.huggingface_model(kind), tmp_path / "a"
    model.save_pretrained(folder, max_shard_size="1MB" if files == "sharded" else "1GB")
    assert (folder / "model.safetensors.index.json").exists() == (files == "sharded")
    if files == "bin":
        (folder / "model.safetensors").unlink()
        positions = {"text_model.embeddings.position_ids": torch.arange(12)[None]}
        torch.save(model.state_dict() | positions, folder / "pytorch_model.bin")
    assert_same_features(peer.our_model(kind, folder), model)
    weights = read_weights(folder)
    assert weights.quick_gelu is KINDS[kind]["quick_gelu"]
    assert parse_model_config(weights.config) == parse_model_config(KINDS[kind])


def test_what_config_json_leaves_out_is_clip_models_default(tmp_path):
    peer.huggingface_model(VITS[0]).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip", "vision_config": {}}')
    ours = parse_model_config(read_weights(tmp_path).config)
    theirs = open_clip.get_model_config("ViT-B-32-quickgelu")
    assert ours == parse_model_config(theirs)


@pytest.fixture
def folder(tmp_path):
    """A whole Hugging Face folder, to break."""
    peer.huggingface_model(VITS[0]).save_pretrained(tmp_path / "a")
    return tmp_path / "a"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "siglip"}, "model_type: expected 'clip'; got 'siglip'"),
        ({"vision_config": {"hidden_act": "relu"}}, "hidden_act: expected gelu or quick_gelu"),
        ({"text_config": {"layer_norm_eps": 1e-6}}, "layer_norm_eps: expected 1e-05; got 1e-06"),
        ({"vision_config": {"image_size": [4, 2]}}, r"image_size: expected .*; got \[4, 2\]"),
        ({"text_config": 3}, "text_config: expected an object of fields; got 3"),
        ({"projection_dim": "x"}, "projection_dim: expected an integer of at least 1; got 'x'"),
    ],
)
def test_a_hugging_face_model_that_is_not_clip_is_one_sentence(folder, change, sentence):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=rf"^{folder}/config\.json: .*{sentence}"):
        read_weights(folder)


@pytest.mark.parametrize("content", ["{", "[1]", "\x80", "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "open_clip_config.json"])
def test_a_broken_configuration_is_one_sentence(folder, name, content):
    shutil.copy(folder / "model.safetensors", folder / "open_clip_model.safetensors")
    (folder / name).write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=rf"^{folder}/{name}: "):
        read_weights(folder)


def test_a_folder_without_a_model_says_what_it_would_hold(tmp_path):
    with pytest.raises(UserError, match="expected a folder with open_clip_config.json and one of"):
        read_weights(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match="expected one of model.safetensors, pytorch_model.bin"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/a.safetensors", "..", "", 3])
def test_an_index_that_points_out_of_its_folder_is_refused(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="expected for each weight a .safetensors file in the same"):
        read_weights(folder)


def test_a_missing_shard_is_named(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model-00001-of-00002\.safetensors: no such file"):
        read_weights(folder)


def test_a_block_without_its_key_projection_is_named(tmp_path):
    model = peer.huggingface_model(VITS[0])
    model.save_pretrained(tmp_path)
    state = model.state_dict()
    lost = "text_model.encoder.layers.1.self_attn.k_proj.bias"
    del state[lost]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"lacks {lost}$"):
        read_weights(tmp_path)
