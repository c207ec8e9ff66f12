"""Weights in and out, in open_clip's checkpoint form: {epoch, name, state_dict, optimizer}."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipfast.errors import UserError


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint without executing anything in it.

    Returns:
        open_clip's dict; a bare state dict comes as {"state_dict": …}. A "module." prefix that
        data-parallel training left on the names is removed.

    Raises:
        UserError: the file is missing, cut short, no checkpoint, or holds code; or its state_dict,
            epoch or optimizer is not what open_clip's form has there.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"checkpoint {path}: expected tensors and plain values; it holds something that only "
            "executing code would load, or it is not a checkpoint"
        ) from None
    except OSError as error:
        raise UserError(f"checkpoint {path}: cannot be read: {error.strerror or error}") from None
    except Exception:  # Damaged bytes make the unpickler raise almost anything.
        raise UserError(
            f"checkpoint {path}: cut short or damaged, or not a file that torch.save wrote"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"checkpoint {path}: expected a dict; got {type(content).__name__}")
    if "state_dict" not in content:
        content = {"state_dict": content}
    _check_content(content, path)
    state = content["state_dict"]
    if state and all(name.startswith("module.") for name in state):
        content["state_dict"] = {n.removeprefix("module."): t for n, t in state.items()}
    return content


def _check_content(content: dict[str, Any], path: Path) -> None:
    """Checks the types of what open_clip's form has."""
    state = content["state_dict"]
    if not isinstance(state, dict):
        raise UserError(
            f"checkpoint {path}: state_dict: expected a dict of tensors; got {type(state).__name__}"
        )
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(
                f"checkpoint {path}: state_dict: expected a tensor under each name; "
                f"got {type(tensor).__name__} under {name!r}"
            )
    epoch, optimizer = content.get("epoch", 0), content.get("optimizer", {})
    if type(epoch) is not int or epoch < 0:
        raise UserError(
            f"checkpoint {path}: epoch: expected an integer of at least 0; got {epoch!r}"
        )
    if not isinstance(optimizer, dict):
        raise UserError(
            f"checkpoint {path}: optimizer: expected a dict; got {type(optimizer).__name__}"
        )


def load_checkpoint(model: nn.Module, path: str | Path) -> dict[str, Any]:
    """Loads a checkpoint's weights into a model, strictly.

    Returns:
        The checkpoint, for its epoch and optimizer.

    Raises:
        UserError: the file cannot be read, or names and shapes differ from the model's.
    """
    checkpoint = read_checkpoint(path)
    load_weights(model, checkpoint["state_dict"], str(path))
    return checkpoint


def load_weights(model: nn.Module, given: dict[str, Any], path: str) -> None:
    """Loads a state dict that was read from `path`, strictly.

    Raises:
        UserError: names or shapes differ from the model's.
    """
    own = model.state_dict()
    missing, unexpected = own.keys() - given.keys(), given.keys() - own.keys()
    for names, what in ((missing, "lacks"), (unexpected, "has what the model does not:")):
        if names:
            raise UserError(f"checkpoint {path}: {what} {_some(sorted(names))}")
    for name, tensor in own.items():
        if given[name].shape != tensor.shape:
            raise UserError(
                f"checkpoint {path}: {name}: expected shape {tuple(tensor.shape)}; "
                f"got {tuple(given[name].shape)}"
            )
    model.load_state_dict(given)


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint so that a crash leaves the old file or the new one, never a part.

    Raises:
        OSError: the folder is not writable or the disk is full; the old file stands.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except RuntimeError as error:
        # torch.save hides a failed write behind its own complaint about the file's length.
        if isinstance(error.__context__, OSError):
            cause = error.__context__
            raise OSError(cause.errno, cause.strerror, str(path)) from None
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        partial.unlink(missing_ok=True)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
