"""Checkpoints that DeepSpeed wrote for another trainer: their weights.

Ours, of any engine, hold tensors and plain values and are read as such. DeepSpeed's own pickle what
they like, so reading one may execute what is in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from clipfast.errors import UserError
from clipfast.weights.checkpoint import unwrapped

_TAG = "latest"  # the file in which DeepSpeed names the folder of the last save
_WEIGHTS = "mp_rank_00_model_states.pt"
_SCALARS = ("logit_scale", "logit_bias")  # which DeepSpeed cannot hold as 0-dim


def is_foreign(path: Path) -> bool:
    return path.is_dir() and ((path / _TAG).is_file() or any(path.glob("*model_states.pt")))


def read_foreign(folder: Path, *, trusted: bool) -> dict[str, Any]:
    """The weights as {"state_dict": …}. Those of ZeRO 3 are in parts, and cannot be read so.

    Args:
        trusted: the user knows who wrote it.

    Raises:
        UserError: it is not trusted, damaged, or does not hold whole weights.
    """
    if (folder / _TAG).is_file():
        folder = folder / (folder / _TAG).read_text().strip()
    path = folder / _WEIGHTS
    if not path.is_file():
        raise UserError(
            f"--resume {folder}: expected {_WEIGHTS}, with the weights of ZeRO 0 to 2; got none; "
            "DeepSpeed's zero_to_fp32.py makes of other stages' a file that --resume reads"
        )
    if not trusted:
        raise UserError(
            f"--resume {folder}: expected a checkpoint of ours or open_clip's; got one of "
            "DeepSpeed's own, and reading it may execute what is in it; if you know who wrote it, "
            "add --trust-checkpoint"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=False)
        state = unwrapped(content["module"])
    except Exception as error:  # whatever unpickling raises
        raise UserError(f"checkpoint {path}: cannot be read: {type(error).__name__}") from None
    for name in _SCALARS:
        if name in state:
            state[name] = state[name].reshape(())
    return {"state_dict": state}
