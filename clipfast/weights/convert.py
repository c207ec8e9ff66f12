"""`clipfast convert`: weights from any form into any other."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from clipfast.errors import UserError
from clipfast.models.config import HFTextConfig, ModelConfig, parse_model_config
from clipfast.models.factory import build_model, read_config
from clipfast.weights.architecture import infer_config
from clipfast.weights.loading import fitted
from clipfast.weights.reading import Weights, read_weights
from clipfast.weights.writing import (
    write_huggingface,
    write_local_dir,
    write_open_clip,
    write_safetensors,
)

_FORM_OF_ENDING = {
    ".pt": "open_clip",
    ".pth": "open_clip",
    ".bin": "open_clip",
    ".safetensors": "safetensors",
    "": "huggingface",
}
_FOLDERS = {"huggingface", "local-dir"}


def convert_checkpoint(arguments: Sequence[str]) -> None:
    """Reads, checks, resizes and writes, and prints one line about it.

    Raises:
        UserError: a mistake in the flags, a source that cannot be read, is not whole or does not
            tell enough, or a form that cannot hold the model.
        OSError: the destination cannot be written.
    """
    args = _parse(arguments)
    source, destination = args.source, Path(args.destination)
    form = args.to or _form_of(destination)
    _check_destination(destination, form, args.force)
    weights = read_weights(source)
    config = _without_own_weights(_config_of(weights, args.model, source))
    activation_known = weights.quick_gelu is not None or args.model is not None
    if form in _FOLDERS and not activation_known:
        raise UserError(
            f"--to {form}: expected a known activation; {source} does not tell it: --model NAME "
            "does, where NAME is the model that was trained (…-quickgelu with OpenAI's activation)"
        )
    state = fitted(weights.state_dict, _shapes(config), source, resize=False)
    target = _resized(config, args.image_size, args.context_length)
    state = fitted(state, _shapes(target), source, resize=True)
    if args.half:
        state = {name: _halved(name, tensor) for name, tensor in state.items()}
    notes = _write(destination, form, state, target, activation_known)
    print(f"{source} -> {destination} ({form}): {_summary(state, notes)}")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="clipfast convert", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="OpenAI's, open_clip's or Hugging Face's file or folder")
    add("destination", metavar="DESTINATION", help="file or folder to write")
    add(
        "--to",
        choices=["open_clip", "safetensors", "huggingface", "local-dir"],
        help="the form (default, by DESTINATION's ending: .pt, .pth and .bin open_clip, "
        ".safetensors safetensors, none huggingface)",
    )
    add("--model", metavar="NAME", help="what SOURCE holds, if it does not tell: a model, or .json")
    add("--image-size", type=int, metavar="N", help="resize the image positions to it")
    add("--context-length", type=int, metavar="N", help="resize the text positions to it")
    add("--half", action="store_true", help="write float16")
    add("--force", action="store_true", help="overwrite DESTINATION")
    return parser.parse_args(arguments)


def _form_of(destination: Path) -> str:
    if destination.suffix not in _FORM_OF_ENDING:
        raise UserError(
            "DESTINATION: expected a name that ends in .pt, .pth, .bin or .safetensors, one without"
            f" an ending for a folder, or --to; got {destination}"
        )
    return _FORM_OF_ENDING[destination.suffix]


def _check_destination(destination: Path, form: str, force: bool) -> None:
    if destination.exists() and destination.is_dir() != (form in _FOLDERS):
        expected, got = ("folder", "file") if form in _FOLDERS else ("file", "folder")
        raise UserError(f"--to {form}: expected a {expected}; got the {got} {destination}")
    empty = destination.is_dir() and not any(destination.iterdir())
    if destination.exists() and not empty and not force:
        raise UserError(f"DESTINATION: {destination} exists; expected a new name, or --force")
    if not destination.absolute().parent.is_dir():
        raise UserError(f"DESTINATION: expected an existing folder; got {destination.parent}")


def _config_of(weights: Weights, model: str | None, source: str) -> ModelConfig:
    """The source's configuration: the one of `--model`, or the source's own, or by its shapes."""
    if model is not None:
        config = read_config(model)
        if weights.quick_gelu not in (None, config.quick_gelu):
            told, asked = map(_activation, (bool(weights.quick_gelu), config.quick_gelu))
            raise UserError(
                f"--model {model}: expected a model with {told}, as {source} has it; got {asked}"
            )
        return config
    if weights.config is not None:
        return parse_model_config(weights.config, source)
    try:
        inferred = infer_config(weights.state_dict, bool(weights.quick_gelu))
    except UserError as error:
        raise UserError(f"checkpoint {source}: {error}; or --model NAME") from None
    return parse_model_config(inferred, source)


def _without_own_weights(config: ModelConfig) -> ModelConfig:
    """The source has the weights that a Hugging Face text tower would otherwise bring along."""
    if isinstance(config.text, HFTextConfig):
        return replace(config, text=replace(config.text, hf_model_pretrained=False))
    return config


def _shapes(config: ModelConfig) -> dict[str, Tensor]:
    """The model's state dict, without memory."""
    with torch.device("meta"):
        return build_model(config).state_dict()


def _resized(
    config: ModelConfig, image_size: int | None, context_length: int | None
) -> ModelConfig:
    vision, text = config.vision, config.text
    if image_size is not None:
        vision = replace(vision, image_size=image_size)
    if context_length is not None:
        text = replace(text, context_length=context_length)
    return replace(config, vision=vision, text=text)


def _halved(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if torch.equal(half.isfinite(), tensor.isfinite()):
        return half
    largest = tensor.abs().max().item()
    raise UserError(f"--half: {name}: expected values that float16 holds; got {largest:g}")


def _write(
    destination: Path,
    form: str,
    state: dict[str, Tensor],
    config: ModelConfig,
    activation_known: bool,
) -> list[str]:
    """Writes, and says what is special about it."""
    notes = [_activation(config.quick_gelu) if activation_known else "activation unknown"]
    told = config if activation_known else None
    if form == "open_clip":
        write_open_clip(destination, state, told)
    elif form == "safetensors":
        write_safetensors(destination, state, told)
    elif form == "local-dir":
        write_local_dir(destination, state, config)
    elif not write_huggingface(destination, state, config):
        notes.append("no tokenizer, which needs an installed open_clip_torch")
    return notes


def _activation(quick_gelu: bool) -> str:
    return "QuickGELU" if quick_gelu else "GELU"


def _summary(state: dict[str, Tensor], notes: Sequence[str]) -> str:
    parameters = sum(t.numel() for n, t in state.items() if not _is_statistic(n))
    dtype = str(state["logit_scale"].dtype).removeprefix("torch.")
    return ", ".join([f"{parameters:,} parameters", dtype, *notes])


def _is_statistic(name: str) -> bool:
    """One of BatchNorm's buffers."""
    return name.endswith((".running_mean", ".running_var", ".num_batches_tracked"))
