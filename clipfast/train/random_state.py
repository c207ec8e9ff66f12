"""The state of torch's random generators: kept, and put back for a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """What a forward's dropout depends on.

    Attributes:
        cpu: the CPU generator's state.
        device: the CUDA device whose generator is kept too, or the CPU.
        cuda: that generator's state; None on the CPU.
    """

    cpu: Tensor
    device: torch.device
    cuda: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> RandomState:
        """Of the CPU, and of the device if it is another."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), device, cuda)

    def restore(self) -> None:
        """What is drawn from here on is what was drawn after `now`."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Draws in the block are those after `now`; after it, generators go on as if they had not
        been."""
        before = RandomState.now(self.device)
        self.restore()
        try:
            yield
        finally:
            before.restore()
