"""Model configurations in open_clip's JSON form, checked as they are read."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, dataclass, fields, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

from clipfast.errors import UserError

_BUILT_IN = files("clipfast.models") / "configs"
_QUICK_GELU = "-quickgelu"  # the same model with OpenAI's activation

INIT_LOGIT_SCALE = math.log(1 / 0.07)


@dataclass(frozen=True)
class ViTConfig:
    layers: int
    width: int
    patch_size: int
    image_size: int = 224
    head_width: int = 64
    mlp_ratio: float = 4.0
    patch_dropout: float = 0.0
    ls_init_value: float | None = None
    output_tokens: bool = False

    def __post_init__(self) -> None:
        _check_fields(self)
        _check_multiple("image_size", self.image_size, self.patch_size, "patch_size")
        _check_multiple("width", self.width, self.head_width, "head_width")


@dataclass(frozen=True)
class ResNetConfig:
    """`layers`: blocks of the four stages; attention pooling has 32·width/head_width heads."""

    layers: list[int]
    width: int = 64
    image_size: int = 224
    head_width: int = 64

    def __post_init__(self) -> None:
        _check_fields(self)
        _expect(len(self.layers) == 4, "layers", "four stages", self.layers)
        _expect(self.width > 1, "width", "at least 2, as the stem has half of it", self.width)
        _check_multiple("image_size", self.image_size, 32, "the stride")
        _check_multiple("32·width", 32 * self.width, self.head_width, "head_width")


@dataclass(frozen=True)
class ConvConfig:
    """A stack of 3×3 convolutions; see `clipfast.models.conv`."""

    channels: list[int]
    image_size: int
    blocks: int = 2

    def __post_init__(self) -> None:
        _check_fields(self)


@dataclass(frozen=True)
class TextConfig:
    width: int = 512
    heads: int = 8
    layers: int = 12
    context_length: int = 77
    vocab_size: int = 49408
    mlp_ratio: float = 4.0
    ls_init_value: float | None = None

    def __post_init__(self) -> None:
        _check_fields(self)
        _check_multiple("width", self.width, self.heads, "heads")


@dataclass(frozen=True)
class HFTextConfig:
    """A Hugging Face encoder as the text tower; see `clipfast.models.hf_text`.

    Attributes:
        hf_model_name: a folder, or a name in the hub's local cache.
        hf_model_pretrained: with its weights; else freshly initialised.
        hf_proj_type, hf_pooler_type: open_clip's names; an empty projection is None.
        hf_tokenizer_name: None is hf_model_name.
        context_length: longer captions are cut.
    """

    hf_model_name: str
    hf_model_pretrained: bool = True
    hf_proj_type: str | None = "mlp"
    hf_pooler_type: str = "mean_pooler"
    hf_tokenizer_name: str | None = None
    context_length: int = 77

    def __post_init__(self) -> None:
        _check_fields(self)


@dataclass(frozen=True)
class ModelConfig:
    """`init_logit_scale`: the multiplier's logarithm; `init_logit_bias`: SigLIP's, or None."""

    embed_dim: int
    vision: ViTConfig | ResNetConfig | ConvConfig
    text: TextConfig | HFTextConfig
    quick_gelu: bool = False
    init_logit_scale: float = INIT_LOGIT_SCALE
    init_logit_bias: float | None = None

    def __post_init__(self) -> None:
        _check_fields(self)


class ForeignField(UserError):
    """A field that open_clip's own models serve, and ours do not."""


# What open_clip's form has beside the fields above, at the values that mean what ours do.
_LEFT_OUT: dict[str, tuple[Any, ...]] = {
    "timm_model_name": (None,),
    "timm_model_pretrained": (False,),
    "timm_pool": ("avg",),
    "timm_proj": ("linear",),
    "timm_proj_bias": (False,),
    "timm_drop": (0.0,),
    "timm_drop_path": (None,),
    "attentional_pool": (False,),
    "attn_pooler_queries": (256,),
    "attn_pooler_heads": (8,),
    "no_ln_pre": (False,),
    "pos_embed_type": ("learnable",),
    "final_ln_after_pool": (False,),
    "pool_type": ("tok", "argmax"),
    "act_kwargs": (None,),
    "norm_kwargs": (None,),
    "block_type": (None, "default"),
    "qk_norm": (False,),
    "scaled_cosine_attn": (False,),
    "scale_heads": (False,),
    "scale_attn_inner": (False,),
    "scale_attn": (False,),
    "scale_fc": (False,),
    "tokenizer_mode": (None,),
    "tokenizer_kwargs": (None,),
    "embed_cls": (False,),
    "pad_id": (0,),
    "eos_id": (2,),
    "no_causal_mask": (False,),
    "proj_bias": (False,),
    "proj_type": ("linear",),
    "custom_text": (False,),
    "multimodal_cfg": (),
    "nonscalar_logit_scale": (False,),
}


def model_names() -> list[str]:
    """The built-in model configurations."""
    published = [name for name in _built_in() if name.startswith(("RN", "ViT"))]
    return sorted([*_built_in(), *(name + _QUICK_GELU for name in published)])


def _built_in() -> list[str]:
    return sorted(path.name.removesuffix(".json") for path in _BUILT_IN.iterdir())


def plain_name(name: str) -> str:
    """open_clip's name of a model that may be called as OpenAI does: "ViT-L/14@336px"."""
    if name.endswith(".json"):
        return name
    return name.replace("/", "-").replace("@336px", "-336")


def read_model_config(name: str) -> ModelConfig:
    """Reads a built-in configuration by name, or any by the path of its .json file.

    Raises:
        ForeignField: only open_clip's own models can be built from it.
        UserError: no such model, unreadable JSON, or a field that is unknown, missing, of another
            type or out of range.
    """
    source: Path | Traversable
    quick_gelu = False
    if name.endswith(".json"):
        source, where = Path(name), name
    else:
        name = plain_name(name)
        quick_gelu = name.endswith(_QUICK_GELU)
        source, where = _BUILT_IN / f"{name.removesuffix(_QUICK_GELU)}.json", f"model {name}"
    if not source.is_file():
        raise UserError(
            f"model: expected a .json file or one of {', '.join(_built_in())} (the paper's also "
            f"with {_QUICK_GELU}); got {name!r}"
        )
    try:
        raw = json.loads(source.read_text())
    except ValueError as error:
        raise UserError(f"{where}: expected a JSON model configuration; {error}") from None
    config = parse_model_config(raw, where)
    return replace(config, quick_gelu=True) if quick_gelu else config


def parse_model_config(raw: Any, where: str = "model configuration") -> ModelConfig:
    """Checks a configuration that has been read; `where` names it in errors."""
    if not isinstance(raw, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= raw.keys():
        raise UserError(f"{where}: expected the fields embed_dim, vision_cfg and text_cfg")
    raw = _without_left_out(raw, where)
    rest_fields = ("embed_dim", "quick_gelu", "init_logit_scale", "init_logit_bias")
    unknown = raw.keys() - {"vision_cfg", "text_cfg", *rest_fields}
    if unknown:
        raise UserError(f"{where}: fields that clipfast does not know: {', '.join(unknown)}")
    for part in ("vision_cfg", "text_cfg"):
        if not isinstance(raw[part], dict):
            raise UserError(f"{where}: {part}: expected an object of fields; got {raw[part]!r}")
    towers = {
        "vision": _parse_vision(raw["vision_cfg"], f"{where}: vision_cfg"),
        "text": _parse_text(raw["text_cfg"], f"{where}: text_cfg"),
    }
    rest = {name: raw[name] for name in rest_fields if name in raw}
    return _fill(ModelConfig, towers | rest, where)


def _parse_vision(raw: dict[str, Any], where: str) -> ViTConfig | ResNetConfig | ConvConfig:
    vision = _without_left_out(raw, where)
    if vision.get("tower") == "conv":
        del vision["tower"]
        return _fill(ConvConfig, vision, where)
    if not isinstance(vision.get("layers"), list):
        return _fill(ViTConfig, vision, where)
    vision.pop("patch_size", None)
    return _fill(ResNetConfig, vision, where)


def _parse_text(raw: dict[str, Any], where: str) -> TextConfig | HFTextConfig:
    text = _without_left_out(raw, where)
    if text.get("hf_model_name"):
        text.pop("vocab_size", None)  # the encoder's own
        if text.get("hf_proj_type") == "":
            text["hf_proj_type"] = None
        return _fill(HFTextConfig, text, where)
    if text.get("hf_tokenizer_name") is not None:
        raise ForeignField(f"{where}: hf_tokenizer_name: another tokenizer needs open_clip's model")
    ours = {n: v for n, v in text.items() if not n.startswith("hf_") and n != "output_tokens"}
    return _fill(TextConfig, ours, where)


def _without_left_out(raw: dict[str, Any], where: str) -> dict[str, Any]:
    kept = {}
    for name, value in raw.items():
        if name not in _LEFT_OUT:
            kept[name] = value
        elif value not in _LEFT_OUT[name]:
            raise ForeignField(f"{where}: {name}: {value!r} needs open_clip's own model")
    return kept


T = TypeVar("T")


def _fill(kind: type[T], values: dict[str, Any], where: str) -> T:
    known = {f.name: f.default is MISSING for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := values.keys() - known:
        raise UserError(
            f"{where}: expected fields among {', '.join(sorted(known))}; "
            f"got {', '.join(sorted(unknown))}"
        )
    if missing := [name for name, required in known.items() if required and name not in values]:
        raise UserError(f"{where}: expected the fields {', '.join(missing)}; got none of them")
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


# A caption has a start and an end token, and the tokenizer's last id is 49407.
_LEAST = {"context_length": 2, "vocab_size": 49408}


def _check_fields(config: Any) -> None:
    """Checks each field's type and range; one that is itself a configuration already has been."""
    for field in fields(config):
        value, least = getattr(config, field.name), _LEAST.get(field.name, 1)
        if field.name == "patch_dropout":
            share = type(value) in (int, float) and 0 <= value < 1
            _expect(share, field.name, "a share of at least 0 and below 1", value)
        elif field.type.endswith("| None") and value is None:
            continue
        elif field.name.startswith("init_logit_"):
            finite = type(value) in (int, float) and math.isfinite(value)
            _expect(finite, field.name, "a finite number", value)
        elif field.type == "int":
            _expect(_is_count(value, least), field.name, f"an integer of at least {least}", value)
        elif field.type == "list[int]":
            counts = isinstance(value, list) and all(_is_count(v, 1) for v in value)
            _expect(counts and value, field.name, "a list of integers of at least 1", value)
        elif field.type in ("float", "float | None"):
            positive = type(value) in (int, float) and 0 < value < math.inf
            _expect(positive, field.name, "a finite number above 0", value)
        elif field.type == "bool":
            _expect(isinstance(value, bool), field.name, "true or false", value)
        elif field.type in ("str", "str | None"):
            _expect(isinstance(value, str) and value != "", field.name, "a name", value)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_multiple(name: str, value: int, divisor: int, of: str) -> None:
    _expect(value % divisor == 0, name, f"a multiple of {of}, {divisor}", value)


def _expect(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise UserError(f"{name}: expected {expected}; got {got!r}")
