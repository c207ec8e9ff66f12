"""One rank of a world of any size, alone in its process, and what its collectives move.

torch's fake process group returns from every collective at once, with this rank's own values in
the place of the others'. So it shows which collectives a rank calls, and of what size: the same as
among real ranks, for nothing of that hangs on values. What they compute is meaningless.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from clipfast.ranks.world import World


@contextmanager
def one_of(world_size: int, rank: int = 0) -> Iterator[World]:
    """The rank, with a group for tensors; what is said on the CPU it says to itself."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield World(rank, world_size, group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()


class Moved(NamedTuple):
    """One collective.

    Attributes:
        name: torch's, of the operator.
        given, got: bytes of what this rank put in, and of what it got out.
    """

    name: str
    given: int
    got: int


class Counting(TorchDispatchMode):
    """Notes every collective that is called inside, from Python or from C++.

    Attributes:
        moved: in the order of the calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.moved: list[Moved] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self._note(func._opname, args)
            return func(*args, **(kwargs or {}))
        if func.namespace != "clipfast_kernels":
            return func(*args, **(kwargs or {}))
        # An operator of ours may call collectives: below this mode it would do so unseen.
        key = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
        with self:
            return func.redispatch(key, *args, **(kwargs or {}))

    def _note(self, name: str, args: Any) -> None:
        first, second = (_bytes(arg) for arg in (*args, None)[:2])
        if name in ("allreduce_", "broadcast_", "allreduce_coalesced_"):
            self.moved.append(Moved(name, first, first))
        elif name not in ("barrier", "monitored_barrier_"):
            self.moved.append(Moved(name, second, first))

    def got(self, *names: str) -> int:
        """Bytes that came out of these collectives; of all without names."""
        return sum(m.got for m in self.moved if not names or m.name in names)

    def by_name(self) -> dict[str, int]:
        totals = defaultdict[str, int](int)
        for moved in self.moved:
            totals[moved.name] += moved.got
        return dict(totals)


def _bytes(arg: Any) -> int:
    if isinstance(arg, Tensor):
        return arg.nbytes
    if isinstance(arg, list | tuple):
        return sum(map(_bytes, arg))
    return 0
