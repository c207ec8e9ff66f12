"""Model configurations in open_clip's JSON form, checked as they are read."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

from clipfast.errors import UserError

_BUILT_IN = files("clipfast.models") / "configs"


@dataclass(frozen=True)
class ViTConfig:
    layers: int
    width: int
    patch_size: int
    image_size: int = 224
    head_width: int = 64
    mlp_ratio: float = 4.0


@dataclass(frozen=True)
class ResNetConfig:
    """`layers`: blocks of the four stages; attention pooling has 32·width/head_width heads."""

    layers: list[int]
    width: int = 64
    image_size: int = 224
    head_width: int = 64


@dataclass(frozen=True)
class ConvConfig:
    """A stack of 3×3 convolutions; see `clipfast.models.conv`."""

    channels: list[int]
    image_size: int
    blocks: int = 2


@dataclass(frozen=True)
class TextConfig:
    width: int = 512
    heads: int = 8
    layers: int = 12
    context_length: int = 77
    vocab_size: int = 49408
    mlp_ratio: float = 4.0


@dataclass(frozen=True)
class ModelConfig:
    embed_dim: int
    vision: ViTConfig | ResNetConfig | ConvConfig
    text: TextConfig
    quick_gelu: bool = False


def model_names() -> list[str]:
    """The built-in model configurations."""
    return sorted(p.name.removesuffix(".json") for p in _BUILT_IN.iterdir())


def read_model_config(name: str) -> ModelConfig:
    """Reads a built-in configuration by name, or any by the path of its .json file.

    Raises:
        UserError: no such model, unreadable JSON, or a field that is unknown or missing.
    """
    source: Path | Traversable
    if name.endswith(".json"):
        source, where = Path(name), name
    else:
        source, where = _BUILT_IN / f"{name}.json", f"model {name}"
    if not source.is_file():
        raise UserError(
            f"model: expected a .json file or one of {', '.join(model_names())}; got {name!r}"
        )
    try:
        raw = json.loads(source.read_text())
    except ValueError as error:
        raise UserError(f"{where}: expected a JSON model configuration; {error}") from None
    return parse_model_config(raw, where)


def parse_model_config(raw: Any, where: str = "model configuration") -> ModelConfig:
    """Checks a configuration that has been read; `where` names it in errors."""
    if not isinstance(raw, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= raw.keys():
        raise UserError(f"{where}: expected the fields embed_dim, vision_cfg and text_cfg")
    unknown = raw.keys() - {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
    if unknown:
        raise UserError(f"{where}: fields that clipfast does not know: {', '.join(unknown)}")
    vision = dict(raw["vision_cfg"])
    kind: type[ViTConfig | ResNetConfig | ConvConfig]
    if vision.pop("tower", None) == "conv":
        kind = ConvConfig
    elif isinstance(vision.get("layers"), list):
        kind = ResNetConfig
        vision.pop("patch_size", None)
    else:
        kind = ViTConfig
    return ModelConfig(
        embed_dim=raw["embed_dim"],
        vision=_fill(kind, vision, f"{where}: vision_cfg"),
        text=_fill(TextConfig, raw["text_cfg"], f"{where}: text_cfg"),
        quick_gelu=raw.get("quick_gelu", False),
    )


T = TypeVar("T")


def _fill(kind: type[T], values: dict[str, Any], where: str) -> T:
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := values.keys() - known:
        raise UserError(
            f"{where}: expected fields among {', '.join(sorted(known))}; "
            f"got {', '.join(sorted(unknown))}"
        )
    try:
        return kind(**values)
    except TypeError as error:
        raise UserError(f"{where}: {error}") from None
