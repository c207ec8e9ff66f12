"""Weights out of any form: OpenAI's archives, open_clip's files and folders, Hugging Face's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from clipfast.errors import UserError
from clipfast.weights.architecture import infer_config
from clipfast.weights.checkpoint import read_checkpoint, unwrapped
from clipfast.weights.huggingface import config_from_huggingface, from_huggingface
from clipfast.weights.names import OPENAI_SCALARS
from clipfast.weights.torchscript import is_torchscript, read_torchscript

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
HF_CONFIG = "config.json"
HF_INDEX = "model.safetensors.index.json"
HF_FILES = ("model.safetensors", "pytorch_model.bin")
CONFIG_KEY = "model_cfg"  # open_clip's, in its folders; ours in checkpoints and safetensors too


class Weights(NamedTuple):
    """What a file holds.

    Attributes:
        state_dict: open_clip's names, without those of wrappers, and the file's dtypes.
        quick_gelu: the activation that the file tells; None where it tells nothing.
        config: open_clip's JSON form, where the file or its shapes tell it.
    """

    state_dict: dict[str, Tensor]
    quick_gelu: bool | None = None
    config: dict[str, Any] | None = None


def read_weights(path: str | Path) -> Weights:
    """Reads weights without executing anything in them.

    Args:
        path: a TorchScript archive of OpenAI's, a checkpoint or bare state dict (.pt, .pth, .bin),
            a .safetensors file, or a folder: open_clip's, with open_clip_config.json, or Hugging
            Face's, with config.json.

    Raises:
        UserError: missing, cut short, in no such form, or holding code.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if is_torchscript(path):
        return _told_by_scalars(unwrapped(read_torchscript(path)), path)
    checkpoint = read_checkpoint(path)
    config = checkpoint.get(CONFIG_KEY)
    if config is None:
        return _told_by_scalars(checkpoint["state_dict"], path)
    return _with_config(checkpoint["state_dict"], config, f"checkpoint {path}: {CONFIG_KEY}")


def is_checkpoint(path: Path) -> bool:
    """It is what `read_checkpoint` reads, or nothing at all."""
    return not (path.is_dir() or path.suffix == ".safetensors" or is_torchscript(path))


def _told_by_scalars(state: dict[str, Tensor], path: Path) -> Weights:
    """OpenAI's, if its scalars are there, all of whose models have QuickGELU."""
    weights = {name: tensor for name, tensor in state.items() if name not in OPENAI_SCALARS}
    if len(weights) == len(state):
        return Weights(state)
    try:
        return Weights(weights, True, infer_config(weights, True))
    except UserError as error:
        raise UserError(f"checkpoint {path}: {error}") from None


def _with_config(state: dict[str, Tensor], config: Any, where: str) -> Weights:
    if not isinstance(config, dict):
        raise UserError(f"{where}: expected an object of fields; got {config!r}")
    return Weights(state, config.get("quick_gelu", False) is True, config)


def _read_safetensors(path: Path) -> Weights:
    if not path.is_file():
        raise UserError(f"checkpoint {path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise UserError(f"checkpoint {path}: cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError):
        raise UserError(
            f"checkpoint {path}: cut short or damaged, or not a safetensors file"
        ) from None
    state = unwrapped(state)
    if CONFIG_KEY not in metadata:
        return _told_by_scalars(state, path)
    where = f"checkpoint {path}: {CONFIG_KEY}"
    return _with_config(state, _parse_json(metadata[CONFIG_KEY], where), where)


def _read_folder(folder: Path) -> Weights:
    open_clip = _first(folder, OPEN_CLIP_FILES)
    if open_clip and (folder / OPEN_CLIP_CONFIG).is_file():
        where = f"{folder / OPEN_CLIP_CONFIG}: {CONFIG_KEY}"
        config = read_json(folder / OPEN_CLIP_CONFIG).get(CONFIG_KEY)
        return _with_config(read_weights(open_clip).state_dict, config, where)
    if (folder / HF_CONFIG).is_file():
        config_file = folder / HF_CONFIG
        config = config_from_huggingface(read_json(config_file), str(config_file))
        state = from_huggingface(_read_huggingface(folder), str(folder))
        return Weights(state, config["quick_gelu"], config)
    raise UserError(
        f"checkpoint {folder}: expected a folder with {OPEN_CLIP_CONFIG} and one of "
        f"{', '.join(OPEN_CLIP_FILES)}, or with {HF_CONFIG}; got neither"
    )


def _read_huggingface(folder: Path) -> dict[str, Tensor]:
    if file := _first(folder, HF_FILES):
        return read_weights(file).state_dict
    index = folder / HF_INDEX
    if not index.is_file():
        raise UserError(
            f"checkpoint {folder}: expected one of {', '.join((*HF_FILES, HF_INDEX))}; got none"
        )
    shards: Any = read_json(index).get("weight_map")
    names: list[Any] = list(shards.values()) if isinstance(shards, dict) else [None]
    if not all(isinstance(n, str) and re.fullmatch(r"[^/\\]+\.safetensors", n) for n in names):
        raise UserError(
            f"{index}: weight_map: expected for each weight a .safetensors file in the same folder"
        )
    state: dict[str, Tensor] = {}
    for name in sorted(set(names)):
        state |= _read_safetensors(folder / name).state_dict
    return state


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    raw = _parse_json(text, str(path))
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected an object of fields; got {type(raw).__name__}")
    return raw


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: expected JSON; {error}") from None
