"""Model configurations in open_clip's JSON form, checked as they are read."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, dataclass, fields
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

    def __post_init__(self) -> None:
        _check_fields(self)
        _check_multiple("width", self.width, self.heads, "heads")


@dataclass(frozen=True)
class ModelConfig:
    embed_dim: int
    vision: ViTConfig | ResNetConfig | ConvConfig
    text: TextConfig
    quick_gelu: bool = False

    def __post_init__(self) -> None:
        _check_fields(self)


def model_names() -> list[str]:
    """The built-in model configurations."""
    return sorted(p.name.removesuffix(".json") for p in _BUILT_IN.iterdir())


def read_model_config(name: str) -> ModelConfig:
    """Reads a built-in configuration by name, or any by the path of its .json file.

    Raises:
        UserError: no such model, unreadable JSON, or a field that is unknown, missing, of another
            type or out of range.
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
    for part in ("vision_cfg", "text_cfg"):
        if not isinstance(raw[part], dict):
            raise UserError(f"{where}: {part}: expected an object of fields; got {raw[part]!r}")
    vision = dict(raw["vision_cfg"])
    kind: type[ViTConfig | ResNetConfig | ConvConfig]
    if vision.get("tower") == "conv":
        del vision["tower"]
        kind = ConvConfig
    elif isinstance(vision.get("layers"), list):
        kind = ResNetConfig
        vision.pop("patch_size", None)
    else:
        kind = ViTConfig
    towers = {
        "vision": _fill(kind, vision, f"{where}: vision_cfg"),
        "text": _fill(TextConfig, raw["text_cfg"], f"{where}: text_cfg"),
    }
    rest = {name: raw[name] for name in ("embed_dim", "quick_gelu") if name in raw}
    return _fill(ModelConfig, towers | rest, where)


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
        if field.type == "int":
            _expect(_is_count(value, least), field.name, f"an integer of at least {least}", value)
        elif field.type == "list[int]":
            counts = isinstance(value, list) and all(_is_count(v, 1) for v in value)
            _expect(counts and value, field.name, "a list of integers of at least 1", value)
        elif field.type == "float":
            positive = type(value) in (int, float) and 0 < value < math.inf
            _expect(positive, field.name, "a finite number above 0", value)
        elif field.type == "bool":
            _expect(isinstance(value, bool), field.name, "true or false", value)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_multiple(name: str, value: int, divisor: int, of: str) -> None:
    _expect(value % divisor == 0, name, f"a multiple of {of}, {divisor}", value)


def _expect(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise UserError(f"{name}: expected {expected}; got {got!r}")
