"""open_clip's checkpoint files: {epoch, name, state_dict, optimizer}, pickled by torch.save."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipfast.errors import UserError
from clipfast.weights.torchscript import is_torchscript

# What data-parallel training and torch.compile put before each name.
_WRAPPERS = ("module.", "_orig_mod.")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint without executing anything in it.

    Returns:
        open_clip's dict; a bare state dict comes as {"state_dict": …}. The "module." and
        "_orig_mod." that wrappers of the model left before the names are removed.

    Raises:
        UserError: the file is missing, cut short, no checkpoint, or holds code; or its state_dict,
            epoch or optimizer is not what open_clip's form has there.
    """
    path = Path(path)
    content = read_dict(path)
    if "state_dict" not in content:
        content = {"state_dict": content}
    _check_content(content, path)
    content["state_dict"] = unwrapped(content["state_dict"])
    return content


def read_dict(path: Path) -> dict[str, Any]:
    """Reads a dict of tensors and plain values that torch.save wrote, executing nothing in it.

    Raises:
        UserError: the file is missing, cut short, of another kind, or holds code.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path}: no such file")
    if is_torchscript(path):
        raise UserError(f"checkpoint {path}: expected a checkpoint; got a TorchScript archive")
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
    return content


def _check_content(content: dict[str, Any], path: Path) -> None:
    """Checks the types of what open_clip's form has."""
    state = content["state_dict"]
    if not isinstance(state, dict):
        raise UserError(
            f"checkpoint {path}: state_dict: expected a dict of tensors; got {type(state).__name__}"
        )
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
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


def unwrapped(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the model inside its wrappers, in whatever order they were put on."""
    state = dict(state_dict)
    while prefix := next((w for w in _WRAPPERS if _all_start_with(w, state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _all_start_with(prefix: str, state: Mapping[str, Tensor]) -> bool:
    return bool(state) and all(name.startswith(prefix) for name in state)


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint so that a crash leaves the old file or the new one, never a part.

    Raises:
        OSError: the folder is not writable or the disk is full; the old file stands.
    """
    with replacing(Path(path)) as partial:
        try:
            with open(partial, "wb") as file:
                torch.save(content, file)
        except RuntimeError as error:
            # torch.save hides a failed write behind its own complaint about the file's length.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the path of a file to write; once the block has written it, it becomes `path`.

    Raises:
        OSError: of the block or the exchange, under the name `path`; the old file stands.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        partial.unlink(missing_ok=True)
