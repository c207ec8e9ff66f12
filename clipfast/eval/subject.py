"""The model under test, from whatever form its checkpoint has."""

from __future__ import annotations

import ast
import contextlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from clipfast.adapters import zoo
from clipfast.data.images.preprocess import Preprocess
from clipfast.errors import UserError
from clipfast.models.config import (
    ModelConfig,
    model_names,
    parse_model_config,
    plain_name,
    read_model_config,
)
from clipfast.models.factory import build_model, create_model, preprocess_of
from clipfast.models.precision import convert_weights
from clipfast.models.tower_keys import tower_fingerprint
from clipfast.weights.architecture import infer_config
from clipfast.weights.loading import load_weights
from clipfast.weights.reading import HF_CONFIG, OPEN_CLIP_CONFIG, read_weights

logger = logging.getLogger("clipfast.eval")

_EPOCH = re.compile(r"epoch_(\d+)\.pt")
_CHECKPOINTS, _PARAMS = "checkpoints", "params.txt"
# What of a run's settings makes another model of the same weights, or shows it images otherwise.
_MODEL_PARAMS = (
    "force_quick_gelu",
    "force_image_size",
    "force_context_length",
    "force_custom_text",
)
_IMAGE_PARAMS = {
    "mean": "image_mean",
    "std": "image_std",
    "interpolation": "image_interpolation",
    "resize_mode": "image_resize_mode",
}


@dataclass(frozen=True)
class Subject:
    """Attributes:
    model: ours or open_clip's, in eval mode on its device, without gradients.
    name: of the architecture.
    weights: the file, the folder, or open_clip's tag.
    preprocess: how it wants its images.
    run: the folder of the training run that the weights are of; None for others.
    """

    model: Any
    name: str
    weights: str
    preprocess: Preprocess
    run: Path | None = None

    @property
    def label(self) -> str:
        """Short, and other for other checkpoints of a model: "ViT-B-32 openai"."""
        path = Path(self.weights)
        where = path.stem if path.suffix else path.name
        if self.run is not None:
            where = f"{self.run.resolve().name}/{where}"
        return where if where == self.name else f"{self.name} {where}"

    @cached_property
    def fingerprint(self) -> str:
        """Other for other weights."""
        return tower_fingerprint([self.model])


def open_subject(
    checkpoint: str,
    *,
    model: str | None = None,
    device: torch.device,
    precision: str = "fp32",
    download: bool = False,
    cache_dir: str | None = None,
) -> Subject:
    """Builds the model and loads its weights.

    Args:
        checkpoint: a file of ours, open_clip's or OpenAI's; a folder in Hugging Face's or
            open_clip's form; the folder of a run, whose newest epoch is taken; or NAME:TAG, weights
            that an installed open_clip knows.
        model: which model it is of; None asks the run that wrote the file, the file, and then the
            shapes of its weights.
        device: to compute on.
        precision: open_clip's name.
        download: weights and tokenizers that open_clip's cache lacks are fetched.
        cache_dir: open_clip's cache, where it is not the usual one.

    Raises:
        UserError: nothing there, no model that fits, or weights that do not.
    """
    path = Path(checkpoint)
    if not path.exists():
        subject = _of_tag(checkpoint, precision, cache_dir, download=download)
    elif path.is_dir() and _is_model_folder(path):
        net = create_model(checkpoint, precision=precision, cache_dir=cache_dir)
        subject = Subject(net, path.resolve().name, checkpoint, preprocess_of(checkpoint))
    else:
        file = _newest(path) if path.is_dir() else path
        run, params = _run_of(file)
        if model is None and "model" in params:
            subject = _of_run(file, run, params, precision, cache_dir)
        elif model is None:
            subject = _as_told_by_weights(file, precision)
        else:
            net = create_model(model, file, precision=precision, cache_dir=cache_dir)
            subject = Subject(net, _short(model), str(file), preprocess_of(model, file), run)
    if hasattr(subject.model, "text_decoder"):
        raise UserError(
            f"{checkpoint}: expected a model of two towers; CoCa's captioning decoder is not "
            "supported"
        )
    subject.model.to(device).eval().requires_grad_(False)
    return subject


def check_named(checkpoint: str) -> None:
    """Raises:
    UserError: neither a file or a folder, nor the form of NAME:TAG.
    """
    name, _, tag = checkpoint.rpartition(":")
    if not Path(checkpoint).exists() and (not name or "/" in tag):
        raise UserError(
            f"{checkpoint}: expected a checkpoint, a run's folder, or NAME:TAG such as "
            "ViT-B-32:openai; got no such file or folder"
        )


def _of_tag(checkpoint: str, precision: str, cache_dir: str | None, *, download: bool) -> Subject:
    check_named(checkpoint)
    name, _, tag = checkpoint.rpartition(":")
    if zoo.known_weights(plain_name(name), tag) is None:
        known = ", ".join(zoo.known_tags(plain_name(name))) or "none"
        raise UserError(
            f"{checkpoint}: expected weights that open_clip knows for {name}: {known}; got {tag!r}"
        )
    weights: str | Path = tag
    if not download:
        found = zoo.cached_weights(plain_name(name), tag, cache_dir)
        if found is None:
            raise UserError(
                f"{checkpoint}: expected the weights in open_clip's cache, as nothing is fetched "
                "unasked; got none; --download fetches them"
            )
        weights = found
    net = create_model(name, weights, precision=precision, cache_dir=cache_dir)
    return Subject(net, plain_name(name), tag, preprocess_of(name, tag))


def _of_run(
    file: Path, run: Path | None, params: Mapping[str, Any], precision: str, cache_dir: str | None
) -> Subject:
    """By the settings of the run that wrote it."""
    name, pretrained = str(params["model"]), params.get("pretrained") or None
    options = {key: params[key] for key in _MODEL_PARAMS if params.get(key)}
    if params.get("siglip"):
        options["init_logit_bias"] = 0.0  # there is one; the weights say which
    net = create_model(name, file, precision=precision, cache_dir=cache_dir, **options)
    shown = {key: params.get(param) for key, param in _IMAGE_PARAMS.items()}
    preprocess = preprocess_of(name, pretrained).changed(f"{run}/{_PARAMS}", **shown)
    return Subject(net, _short(name), str(file), preprocess, run)


def _as_told_by_weights(file: Path, precision: str) -> Subject:
    weights = read_weights(file)
    config = weights.config
    if config is None:
        try:
            config = infer_config(weights.state_dict, bool(weights.quick_gelu))
        except UserError as error:
            raise UserError(f"{file}: say by --model which model it is of: {error}") from None
        logger.warning(
            f"{file}: the model is told by the shapes of the weights alone, with GELU and heads of "
            "64 channels; --model says another"
        )
    parsed = parse_model_config(config, str(file))
    net = build_model(parsed)
    convert_weights(net, precision)
    load_weights(net, weights.state_dict, str(file))
    return Subject(net, _name_of(parsed) or file.stem, str(file), Preprocess())


def _name_of(config: ModelConfig) -> str | None:
    """The built-in model that it is."""
    return next((name for name in model_names() if read_model_config(name) == config), None)


def _is_model_folder(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (OPEN_CLIP_CONFIG, HF_CONFIG))


def _newest(folder: Path) -> Path:
    """The last epoch of a run, or in a folder of checkpoints."""
    inner = folder / _CHECKPOINTS if (folder / _CHECKPOINTS).is_dir() else folder
    epochs = [(int(match[1]), path) for path in inner.glob("*") if (match := _match(path))]
    if epochs:
        return max(epochs)[1]
    latest = inner / "epoch_latest.pt"
    if latest.is_file():
        return latest
    raise UserError(
        f"{folder}: expected a run with {_CHECKPOINTS}/epoch_N.pt, or a model's folder with "
        f"{OPEN_CLIP_CONFIG} or {HF_CONFIG}; got neither"
    )


def _match(path: Path) -> re.Match[str] | None:
    return _EPOCH.fullmatch(path.name)


def _run_of(file: Path) -> tuple[Path | None, dict[str, Any]]:
    """The folder of the run that wrote a checkpoint, and its settings."""
    run = file.absolute().parent.parent
    try:
        lines = (run / _PARAMS).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None, {}
    parts = (line.partition(": ") for line in lines)
    shown = Path(file).parent.parent
    return shown, {name: _value(text) for name, separator, text in parts if separator}


def _value(text: str) -> Any:
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    return text


def _short(model: str) -> str:
    return Path(model).stem if model.endswith(".json") else plain_name(model)
