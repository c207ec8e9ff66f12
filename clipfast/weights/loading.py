"""Weights into a model: strict, but for what the forms of CLIP's files are known to differ in."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipfast.errors import UserError
from clipfast.weights.checkpoint import read_checkpoint
from clipfast.weights.names import (
    OPENAI_SCALARS,
    has_text_prefix,
    with_flat_text,
    with_text_prefix,
)
from clipfast.weights.reading import is_checkpoint, read_weights
from clipfast.weights.resize import resize_grid, resize_sequence

logger = logging.getLogger("clipfast.weights")

_RESIZE = {
    "visual.positional_embedding": resize_grid,
    "visual.attnpool.positional_embedding": resize_grid,
    "positional_embedding": resize_sequence,
    "text.positional_embedding": resize_sequence,
}

_SCALARS = {"logit_scale", "logit_bias"}  # open_clip has them in shape () or (1,)


def load_checkpoint(model: nn.Module, path: str | Path) -> dict[str, Any]:
    """Loads the weights of a file or folder, in any form of `read_weights`, as `load_weights` does.

    Returns:
        The checkpoint, for its epoch and optimizer; other forms have "state_dict" alone.

    Raises:
        UserError: it cannot be read, or names and shapes differ from the model's.
    """
    path = Path(path)
    content = (
        read_checkpoint(path)
        if is_checkpoint(path)
        else {"state_dict": read_weights(path).state_dict}
    )
    load_weights(model, content["state_dict"], str(path))
    return content


def load_weights(
    model: nn.Module, state_dict: Mapping[str, Tensor], where: str, *, resize: bool = True
) -> None:
    """Loads a state dict with open_clip's names, casting to the model's dtypes.

    Args:
        model: of any class with open_clip's names, the text tower's at the top or under `text.`.
        state_dict: names in either form; `logit_scale` of shape () or (1,).
        where: names the source in errors.
        resize: positions for another image size or context length are resized.

    Raises:
        UserError: names or shapes differ from the model's.
    """
    model.load_state_dict(fitted(state_dict, model.state_dict(), where, resize=resize))


def fitted(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str, *, resize: bool
) -> dict[str, Tensor]:
    """`given` with the names, order, shapes and dtypes of `own`; see `load_weights`."""
    given = with_text_prefix(given) if has_text_prefix(own) else with_flat_text(given)
    given = {name: tensor for name, tensor in given.items() if name not in OPENAI_SCALARS}
    for name, tensor in own.items():
        if name.endswith(".num_batches_tracked"):
            # Old files lack it, and BatchNorm with a fixed momentum does not read it.
            given.setdefault(name, torch.zeros_like(tensor, device="cpu"))
    if "logit_bias" in own:  # weights of the softmax loss, to be trained with the sigmoid
        given.setdefault("logit_bias", torch.zeros_like(own["logit_bias"], device="cpu"))
    shaped = {
        name: _shaped(given[name], name, tensor.shape, resize)
        for name, tensor in own.items()
        if name in given
    }
    faults = []
    if missing := own.keys() - given.keys():
        faults.append(f"lacks {_some(missing)}")
    if unexpected := given.keys() - own.keys():
        faults.append(f"has what the model does not: {_some(unexpected)}")
    if differing := [
        f"{name}: expected shape {tuple(own[name].shape)}; got {tuple(tensor.shape)}"
        for name, tensor in shaped.items()
        if tensor.shape != own[name].shape
    ]:
        faults.append(_some(differing))
    if faults:
        raise UserError(f"checkpoint {where}: {'; '.join(faults)}")
    return {name: tensor.to(own[name].dtype) for name, tensor in shaped.items()}


def _shaped(tensor: Tensor, name: str, shape: torch.Size, resize: bool) -> Tensor:
    """The tensor in the model's shape, if it may be brought there; else as it is."""
    if tensor.shape == shape:
        return tensor
    if name in _SCALARS and tensor.numel() == shape.numel() == 1:
        return tensor.reshape(shape)
    if not resize or name not in _RESIZE or tensor.ndim != 2 or tensor.shape[1:] != shape[1:]:
        return tensor
    try:
        resized = _RESIZE[name](tensor, shape[0])
    except ValueError:  # not a square grid
        return tensor
    logger.info("%s resized from %d to %d positions", name, len(tensor), len(resized))
    return resized


def _some(items: Iterable[str]) -> str:
    items = sorted(items)
    shown = ", ".join(items[:3])
    return shown if len(items) <= 3 else f"{shown} and {len(items) - 3} more"
