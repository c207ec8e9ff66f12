"""Model configurations in open_clip's JSON form: told by weights, and written for open_clip."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from clipfast.errors import UserError
from clipfast.models.config import INIT_LOGIT_SCALE, ConvConfig, ModelConfig, ResNetConfig
from clipfast.weights.names import with_flat_text

_HEAD_WIDTH = 64  # of every published model; shapes do not tell it
_STRIDE = 32  # of the whole ResNet


def infer_config(state_dict: Mapping[str, Tensor], quick_gelu: bool) -> dict[str, Any]:
    """The configuration of a CLIP with a ViT or ResNet image tower, by the shapes of its weights.

    Args:
        state_dict: open_clip's names, the text tower's at the top or under `text.`.
        quick_gelu: the activation, which shapes do not tell.

    Raises:
        UserError: a tensor that tells a size is missing, or of another rank.
    """
    state = with_flat_text(state_dict)
    expected = "state_dict: expected a CLIP with a ViT or ResNet image tower"
    try:
        vision = _vit(state) if "visual.class_embedding" in state else _resnet(state)
        context_length, width = state["positional_embedding"].shape
        vocab_size, _ = state["token_embedding.weight"].shape
        _, embed_dim = state["text_projection"].shape
    except KeyError as error:
        raise UserError(f"{expected}; {error.args[0]} is missing") from None
    except ValueError:
        raise UserError(f"{expected}; got other shapes") from None
    bias = {"init_logit_bias": float(state["logit_bias"])} if "logit_bias" in state else {}
    return {
        "embed_dim": embed_dim,
        "quick_gelu": quick_gelu,
        **bias,
        "vision_cfg": vision,
        "text_cfg": {
            "context_length": context_length,
            "vocab_size": vocab_size,
            "width": width,
            "heads": max(width // _HEAD_WIDTH, 1),
            "layers": _count(r"transformer\.resblocks\.(\d+)\.", state),
        },
    }


def _vit(state: Mapping[str, Tensor]) -> dict[str, Any]:
    width, _, patch_size, _ = state["visual.conv1.weight"].shape
    return {
        "image_size": patch_size * _side(state["visual.positional_embedding"]),
        "layers": _count(r"visual\.transformer\.resblocks\.(\d+)\.", state),
        "width": width,
        "patch_size": patch_size,
    }


def _resnet(state: Mapping[str, Tensor]) -> dict[str, Any]:
    width, _, _, _ = state["visual.layer1.0.conv1.weight"].shape
    return {
        "image_size": _STRIDE * _side(state["visual.attnpool.positional_embedding"]),
        "layers": [_count(rf"visual\.layer{i}\.(\d+)\.", state) for i in (1, 2, 3, 4)],
        "width": width,
        "patch_size": None,
    }


def _side(positions_LW: Tensor) -> int:
    return math.isqrt(len(positions_LW) - 1)


def _count(pattern: str, names: Iterable[str]) -> int:
    return len({match[1] for name in names if (match := re.match(pattern, name))})


def open_clip_json(config: ModelConfig) -> dict[str, Any]:
    """The configuration as `clipfast.models.config.parse_model_config` and open_clip read it."""
    vision = asdict(config.vision)
    if isinstance(config.vision, ConvConfig):
        vision["tower"] = "conv"
    if isinstance(config.vision, ResNetConfig):
        vision["patch_size"] = None
    raw = {
        "embed_dim": config.embed_dim,
        "quick_gelu": config.quick_gelu,
        "vision_cfg": vision,
        "text_cfg": asdict(config.text),
    }
    if config.init_logit_scale != INIT_LOGIT_SCALE:
        raw["init_logit_scale"] = config.init_logit_scale
    if config.init_logit_bias is not None:
        raw["init_logit_bias"] = config.init_logit_bias
    return raw
