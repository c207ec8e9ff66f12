"""From a name or a configuration to a model."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipfast.adapters import zoo
from clipfast.adapters.acceleration import accelerate
from clipfast.data.images.preprocess import Preprocess
from clipfast.errors import UserError
from clipfast.models.clip import CLIP, CustomTextCLIP, TwoTowers
from clipfast.models.config import (
    ConvConfig,
    ForeignField,
    HFTextConfig,
    ModelConfig,
    TextConfig,
    ViTConfig,
    model_names,
    parse_model_config,
    plain_name,
    read_model_config,
)
from clipfast.models.conv import ConvTower
from clipfast.models.hf_text import HFTextTower
from clipfast.models.precision import convert_weights
from clipfast.models.resnet import ModifiedResNet
from clipfast.models.transformer import QuickGELU
from clipfast.models.vit import VisionTransformer
from clipfast.weights.loading import load_weights
from clipfast.weights.reading import OPEN_CLIP_CONFIG, Weights, read_json, read_weights

logger = logging.getLogger(__name__)


def create_model(
    name: str,
    pretrained: str | Path | None = None,
    *,
    output_dict: bool = False,
    precision: str = "fp32",
    force_quick_gelu: bool = False,
    force_image_size: int | None = None,
    force_context_length: int | None = None,
    force_patch_dropout: float | None = None,
    force_custom_text: bool = False,
    pretrained_image: bool = False,
    cache_dir: str | None = None,
    init_logit_scale: float | None = None,
    init_logit_bias: float | None = None,
) -> Any:
    """Builds a model, freshly initialised or with weights.

    Args:
        name: a built-in configuration (`clipfast.models.config.model_names`; OpenAI's names do
            too), the path of a .json file in open_clip's form, a folder with a model in open_clip's
            or Hugging Face's form, or any other model of an installed open_clip, which is then
            open_clip's own, accelerated (`clipfast.accelerate`).
        pretrained: weights in any form that `clipfast.weights.reading.read_weights` takes, or a tag
            of open_clip's for this model, which open_clip fetches. Positions are resized to the
            model's. The activation is the one that the weights were trained with, where they tell.
        output_dict: `model(image, text)` returns a dict instead of a tuple.
        precision: open_clip's names. bf16 and fp16 keep matrices in 16 bits and the rest in
            float32, pure_bf16 and pure_fp16 everything in 16 bits; the others float32.
        force_quick_gelu, force_image_size, force_context_length, force_patch_dropout: in place of
            what the configuration says.
        force_custom_text: the text tower is a module `text`, in a model of open_clip's own.
        pretrained_image: a timm image tower has timm's weights, unless `pretrained` is given.
        cache_dir: where open_clip keeps the weights and tokenizers that it fetches.
        init_logit_scale, init_logit_bias: in place of the configuration's.

    Returns:
        A `clipfast.models.clip.TwoTowers`, or open_clip's model.

    Raises:
        UserError: unknown model, faulty configuration, or weights that do not fit it.
    """
    folder = Path(name.removeprefix("local-dir:"))
    if folder.is_dir() and pretrained is None:
        pretrained = folder
    weights = None
    if pretrained is not None:
        weights = read_weights(_weights_file(name, pretrained, cache_dir))
    forced: dict[str, Any] = {
        "force_quick_gelu": force_quick_gelu,
        "force_image_size": force_image_size,
        "force_context_length": force_context_length,
        "force_patch_dropout": force_patch_dropout,
        "force_custom_text": force_custom_text,
    }
    logits: dict[str, Any] = {}
    if init_logit_scale is not None:
        logits["init_logit_scale"] = init_logit_scale
    if init_logit_bias is not None:
        logits["init_logit_bias"] = init_logit_bias
    try:
        config = replace(_forced(_read_config(name, folder, weights), **forced), **logits)
    except ForeignField as foreign:
        options = {"output_dict": output_dict, "precision": precision, **forced, **logits}
        options |= {"pretrained_image": pretrained_image and weights is None}
        model: nn.Module = zoo.create(plain_name(name), foreign, cache_dir, **options)
        accelerate(model)
    else:
        model = build_model(_with_activation_of(weights, config), output_dict=output_dict)
        convert_weights(model, precision)
    if weights is not None:
        load_weights(model, weights.state_dict, str(pretrained))
    return model


def build_model(config: ModelConfig, *, output_dict: bool = False) -> TwoTowers:
    activation = QuickGELU if config.quick_gelu else nn.GELU
    visual = _build_visual(config, activation)
    shared: dict[str, Any] = {
        "embed_dim": config.embed_dim,
        "output_dict": output_dict,
        "init_logit_scale": config.init_logit_scale,
        "init_logit_bias": config.init_logit_bias,
    }
    if isinstance(config.text, HFTextConfig):
        return CustomTextCLIP(visual, HFTextTower(config.text, config.embed_dim), **shared)
    return CLIP(visual, activation=activation, **vars(config.text), **shared)


def image_size(model: Any) -> int:
    """Side of the square images that a model of ours or open_clip's takes, in pixels.

    Raises:
        UserError: they are not square.
    """
    size: Any = model.visual.image_size
    sides = set(size) if isinstance(size, (tuple, list)) else {size}
    if len(sides) != 1:
        raise UserError(f"model: expected square images; got {tuple(size)}")
    return int(sides.pop())


def read_config(name: str) -> ModelConfig:
    """The configuration of a built-in model, of a .json file, or of an installed open_clip's model.

    Raises:
        ForeignField: only open_clip's own model can be built from it.
        UserError: as `clipfast.models.config.read_model_config`.
    """
    plain = plain_name(name)
    if not name.endswith(".json") and plain not in model_names():
        zoo_config = zoo.find_config(plain)
        if zoo_config is not None:
            return parse_model_config(zoo_config, f"model {plain}")
    return read_model_config(name)


def _read_config(name: str, folder: Path, weights: Weights | None) -> ModelConfig:
    """The folder's own configuration, if `name` is one; else the name's."""
    if not folder.is_dir():
        return read_config(name)
    if weights is None or weights.config is None:
        raise UserError(f"model {folder}: expected a folder that says which model it holds")
    return parse_model_config(weights.config, str(folder))


def preprocess_of(name: str, pretrained: str | Path | None = None) -> Preprocess:
    """How a model that `create_model` makes of these wants its images.

    A folder in open_clip's form says so itself, and open_clip knows for its tags; all others are
    shown images as CLIP is.

    Raises:
        UserError: a folder's configuration cannot be read or honoured.
    """
    folder = Path(name.removeprefix("local-dir:") if pretrained is None else pretrained)
    file = folder / OPEN_CLIP_CONFIG
    if file.is_file():
        return Preprocess.of(read_json(file).get("preprocess_cfg") or {}, str(file))
    if pretrained is None or folder.exists():
        return Preprocess()
    tag = zoo.known_weights(plain_name(name), str(pretrained)) or {}
    return Preprocess.of(tag, f"--pretrained {pretrained}")


def _weights_file(name: str, pretrained: str | Path, cache_dir: str | None) -> Path:
    """The file, or the one that open_clip has, or fetches, under this tag."""
    path = Path(pretrained)
    if path.exists():
        return path
    return zoo.find_weights(plain_name(name), str(pretrained), cache_dir) or path


def _forced(
    config: ModelConfig,
    *,
    force_quick_gelu: bool,
    force_image_size: int | None,
    force_context_length: int | None,
    force_patch_dropout: float | None,
    force_custom_text: bool,
) -> ModelConfig:
    vision, text = config.vision, config.text
    if force_custom_text and isinstance(text, TextConfig):
        raise ForeignField("--force-custom-text: a text module needs open_clip's own model")
    if force_image_size is not None:
        vision = replace(vision, image_size=force_image_size)
    if force_patch_dropout is not None:
        if not isinstance(vision, ViTConfig):
            raise UserError("--force-patch-dropout: expected a ViT; got another image tower")
        vision = replace(vision, patch_dropout=force_patch_dropout)
    if force_context_length is not None:
        text = replace(text, context_length=force_context_length)
    quick_gelu = config.quick_gelu or force_quick_gelu
    return replace(config, vision=vision, text=text, quick_gelu=quick_gelu)


def _with_activation_of(weights: Weights | None, config: ModelConfig) -> ModelConfig:
    if weights is None or weights.quick_gelu in (None, config.quick_gelu):
        return config
    activation = "QuickGELU" if weights.quick_gelu else "GELU"
    logger.info(f"model: takes {activation}, with which the weights were trained")
    return replace(config, quick_gelu=weights.quick_gelu)


def _build_visual(config: ModelConfig, activation: type[nn.Module]) -> nn.Module:
    vision = config.vision
    if isinstance(vision, ViTConfig):
        fields = vars(vision) | {"heads": vision.width // vision.head_width}
        del fields["head_width"]
        return VisionTransformer(**fields, output_dim=config.embed_dim, activation=activation)
    if isinstance(vision, ConvConfig):
        # On a CPU this takes 0.7 of the time; a ResNet gains 7 %, and loses a digit, because
        # torch sums BatchNorm's statistics in a less exact order.
        tower = ConvTower(**vars(vision), embed_dim=config.embed_dim)
        return tower.to(memory_format=torch.channels_last)
    return ModifiedResNet(
        layers=vision.layers,
        width=vision.width,
        heads=vision.width * 32 // vision.head_width,
        image_size=vision.image_size,
        output_dim=config.embed_dim,
    )
