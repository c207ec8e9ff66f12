"""Hugging Face's CLIPModel: its names and its configuration, both ways.

It keeps queries, keys and values apart, and has the projections the other way round.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clipfast.data.text.tokenizer import END_ID, START_ID
from clipfast.errors import UserError
from clipfast.models.config import ModelConfig, ResNetConfig, TextConfig, ViTConfig

_OUTSIDE_BLOCKS = {
    "logit_scale": "logit_scale",
    "text_projection": "text_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.proj": "visual_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"text_projection", "visual.proj"}
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OURS = re.compile(r"(?P<visual>visual\.)?transformer\.resblocks\.(?P<block>\d+\.)(?P<part>.+)")
_THEIRS = re.compile(r"(?P<tower>text|vision)_model\.encoder\.layers\.(?P<block>\d+\.)(?P<part>.+)")
_BUFFER = "embeddings.position_ids"  # 0, 1, 2, …, which older versions saved

_ACTIVATIONS = {"quick_gelu": True, "gelu": False}
# CLIPTextConfig's and CLIPVisionConfig's, which a file may leave out.
_TEXT_DEFAULTS = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
}
_VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "image_size": 224,
    "patch_size": 32,
}


def to_huggingface(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIPModel's state dict.

    Args:
        state_dict: open_clip's names, of a CLIP with a ViT image tower.
    """
    theirs = {}
    for name, tensor in state_dict.items():
        if name in _OUTSIDE_BLOCKS:
            theirs[_OUTSIDE_BLOCKS[name]] = _turned(name, tensor)
            continue
        match = _OURS.fullmatch(name)
        assert match, name
        tower = "vision" if match["visual"] else "text"
        block = f"{tower}_model.encoder.layers.{match['block']}"
        if match["part"].startswith("attn.in_proj_"):
            kind = match["part"].removeprefix("attn.in_proj_")
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                theirs[f"{block}self_attn.{letter}_proj.{kind}"] = third
        else:
            module, _, kind = match["part"].rpartition(".")
            theirs[f"{block}{_IN_BLOCK[module]}.{kind}"] = tensor
    return theirs


def from_huggingface(state_dict: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """A CLIPModel's state dict under open_clip's names; names that CLIPModel lacks stay.

    Raises:
        UserError: one of a block's query, key and value is missing, or their shapes differ.
    """
    outside = {theirs: ours for ours, theirs in _OUTSIDE_BLOCKS.items()}
    in_block = {theirs: ours for ours, theirs in _IN_BLOCK.items()}
    ours: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        match = _THEIRS.fullmatch(name)
        if name in outside:
            ours[outside[name]] = _turned(outside[name], tensor)
        elif match is None:
            if not name.endswith(_BUFFER):
                ours[name] = tensor
        else:
            tower = "visual." if match["tower"] == "vision" else ""
            block = f"{tower}transformer.resblocks.{match['block']}"
            module, _, kind = match["part"].rpartition(".")
            fused = f"{block}attn.in_proj_{kind}"
            if module in in_block:
                ours[f"{block}{in_block[module]}.{kind}"] = tensor
            elif not re.fullmatch(r"self_attn\.[qkv]_proj", module):
                ours[name] = tensor
            elif fused not in ours:
                ours[fused] = _fuse(state_dict, name, module, where)
    return ours


def _turned(name: str, tensor: Tensor) -> Tensor:
    return tensor.T if name in _TRANSPOSED and tensor.ndim == 2 else tensor


def _fuse(state_dict: Mapping[str, Tensor], name: str, module: str, where: str) -> Tensor:
    """The query's, key's and value's tensors in one; `name` is any one of them."""
    names = [name.replace(module, f"self_attn.{letter}_proj") for letter in "qkv"]
    if missing := [n for n in names if n not in state_dict]:
        raise UserError(f"checkpoint {where}: lacks {', '.join(missing)}")
    if len(shapes := {tuple(state_dict[n].shape) for n in names}) > 1:
        raise UserError(
            f"checkpoint {where}: {name}: expected one shape for query, key and value; "
            f"got {' and '.join(map(str, sorted(shapes)))}"
        )
    return torch.cat([state_dict[n] for n in names])


def config_to_huggingface(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """CLIPModel's config.json.

    Raises:
        UserError: a CLIPModel cannot be that model.
    """
    vision, text = config.vision, config.text
    if not isinstance(vision, ViTConfig):
        got = "a ResNet" if isinstance(vision, ResNetConfig) else "another tower"
        raise UserError(f"huggingface: expected a model with a ViT image tower; got {got}")
    if not isinstance(text, TextConfig):
        raise UserError("huggingface: expected a model with CLIP's text tower; got another tower")
    if vision.ls_init_value is not None or text.ls_init_value is not None:
        raise UserError("huggingface: expected a model without ls_init_value; got one with it")
    if config.init_logit_bias is not None:
        raise UserError("huggingface: expected a model without logit_bias; got one with it")
    activation = "quick_gelu" if config.quick_gelu else "gelu"
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": str(dtype).removeprefix("torch."),
        "projection_dim": config.embed_dim,
        "text_config": {
            "model_type": "clip_text_model",
            "hidden_act": activation,
            "hidden_size": text.width,
            "intermediate_size": int(text.width * text.mlp_ratio),
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocab_size,
            "projection_dim": config.embed_dim,
            "bos_token_id": START_ID,
            "eos_token_id": END_ID,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_act": activation,
            "hidden_size": vision.width,
            "intermediate_size": int(vision.width * vision.mlp_ratio),
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.width // vision.head_width,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "projection_dim": config.embed_dim,
        },
    }


def config_from_huggingface(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """open_clip's JSON form of CLIPModel's config.json.

    Raises:
        UserError: another model, or one that differs from CLIP.
    """
    if raw.get("model_type") != "clip":
        raise UserError(f"{where}: model_type: expected 'clip'; got {raw.get('model_type')!r}")
    text = _tower(raw, "text_config", _TEXT_DEFAULTS, where)
    vision = _tower(raw, "vision_config", _VISION_DEFAULTS, where)
    embed_dim = raw.get("projection_dim", 512)
    _expect_count(embed_dim, "projection_dim", where)
    if text["hidden_act"] != vision["hidden_act"] or text["hidden_act"] not in list(_ACTIVATIONS):
        raise UserError(
            f"{where}: hidden_act: expected gelu or quick_gelu, the same in both towers; "
            f"got {text['hidden_act']!r} and {vision['hidden_act']!r}"
        )
    return {
        "embed_dim": embed_dim,
        "quick_gelu": _ACTIVATIONS[text["hidden_act"]],
        "vision_cfg": {
            "image_size": vision["image_size"],
            "layers": vision["num_hidden_layers"],
            "width": vision["hidden_size"],
            "patch_size": vision["patch_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "mlp_ratio": _mlp_ratio(vision),
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "layers": text["num_hidden_layers"],
            "mlp_ratio": _mlp_ratio(text),
        },
    }


def _tower(
    raw: Mapping[str, Any], part: str, defaults: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """One tower's fields; `…_config_dict`, which older versions wrote, comes before `…_config`."""
    given: dict[str, Any] = {}
    for name in (part, f"{part}_dict"):
        fields = raw.get(name) or {}
        if not isinstance(fields, dict):
            raise UserError(f"{where}: {name}: expected an object of fields; got {fields!r}")
        given |= fields
    tower = {name: given.get(name, default) for name, default in defaults.items()}
    for name, default in defaults.items():
        if isinstance(default, int):
            _expect_count(tower[name], f"{part}: {name}", where)
    if tower["layer_norm_eps"] != defaults["layer_norm_eps"]:
        raise UserError(
            f"{where}: {part}: layer_norm_eps: expected {defaults['layer_norm_eps']}; "
            f"got {tower['layer_norm_eps']!r}"
        )
    return tower


def _mlp_ratio(tower: Mapping[str, Any]) -> float:
    """The factor that, times the width and cut to an integer, is the MLP's hidden width."""
    width, hidden = tower["hidden_size"], tower["intermediate_size"]
    ratio: float = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _expect_count(value: object, name: str, where: str) -> None:
    if type(value) is not int or value < 1:
        raise UserError(f"{where}: {name}: expected an integer of at least 1; got {value!r}")
