"""Where an op's case runs: a device and a dtype."""

from __future__ import annotations

from typing import NamedTuple

import torch

from clipfast.errors import UserError

DEVICES = ("auto", "cpu", "cuda")


class Place(NamedTuple):
    device: torch.device
    dtype: torch.dtype

    @staticmethod
    def of(name: str) -> Place:
        """Of ``cpu-float32``."""
        device, _, dtype = name.partition("-")
        return Place(torch.device(device), getattr(torch, dtype))

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


CPU = Place(torch.device("cpu"), torch.float32)


def chosen_device(name: str) -> torch.device:
    """Raises:
    UserError: no such device, or none here.
    """
    if name not in DEVICES:
        raise UserError(f"--device: expected one of {', '.join(DEVICES)}; got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: expected a GPU that torch can use; got none")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def places(device: torch.device) -> list[str]:
    """The dtypes that people train in there."""
    if device.type == "cuda":
        return ["cuda-bfloat16", "cuda-float16"]
    return ["cpu-float32"]
