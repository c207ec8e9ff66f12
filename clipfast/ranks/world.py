"""The processes of a run: who this one is, and the few things that they must agree on.

W ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """Attributes:
    rank, size: of all processes of the run.
    local_rank: among those of this machine.
    device: where this process computes.
    group: of all processes, for tensors on `device`; None for a process alone.
    control: of all processes, for what is said on the CPU; None for a process alone.
    store: where processes that cannot wait for each other leave messages; None for one alone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: dist.ProcessGroup | None = None
    control: dist.ProcessGroup | None = None
    store: dist.Store | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes what only one may write."""
        return self.rank == 0

    def barrier(self) -> None:
        if self.control is not None:
            dist.barrier(self.control)

    def most(self, *values: int) -> list[int]:
        """The largest of all ranks', for each value."""
        if self.control is None:
            return list(values)
        tensor = torch.tensor(values)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, self.control)
        return [int(value) for value in tensor]

    def all(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order. It is pickled: for small things of our own."""
        if self.control is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, self.control)
        return values

    def from_main(self, value: Any) -> Any:
        """Rank 0's value, on all ranks."""
        if self.control is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0, self.control)
        return values[0]
