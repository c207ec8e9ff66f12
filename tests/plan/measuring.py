"""What real runs on this machine keep and send, to hold the planner's figures against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from clipfast import create_model
from clipfast.data.batch import Batch
from clipfast.data.images.normalize import Normalize
from clipfast.encoder import Encoder
from clipfast.packed_text import PackedText
from clipfast.plan.counting import KeptStorages

CPU = torch.device("cpu")


def net_allocated(run: Callable[[], Any]) -> int:
    """Bytes that torch's allocator gave out in `run` and did not get back, by its own account."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = run()
    del kept
    return sum(event.self_cpu_memory_usage for event in seen.key_averages())


class Trainer:
    """The trainer's own encoder of a fresh model, and batches for it."""

    def __init__(self, name: str, precision: str = "fp32") -> None:
        self.model = create_model(name, precision=precision).train()
        normalize = Normalize(device=CPU)
        self.encoder = Encoder(
            self.model, precision=precision, normalize=normalize, device=CPU, compiled=False
        )

    def batch(self, pairs: int, tokens: int) -> Batch:
        side = self.model.image_size
        images = torch.randint(0, 256, (pairs, 3, side, side), dtype=torch.uint8)
        ends = torch.arange(pairs + 1, dtype=torch.int32) * tokens
        text = PackedText(torch.randint(1, 400, (pairs * tokens,)), ends)
        return Batch(images, text, np.arange(pairs))

    def features(self, batch: Batch) -> list[Tensor]:
        return [self.encoder.image(batch), self.encoder.text(batch)]

    def kept(self, pairs: int, tokens: int) -> int:
        """Bytes that autograd keeps of a forward, each storage once."""
        batch = self.batch(pairs, tokens)
        with KeptStorages(self.model) as storages:
            features = self.features(batch)
        del features
        return storages.bytes


class Collectives(TorchDispatchMode):
    """Every collective that a process begins while it is entered, whoever calls it.

    Attributes:
        calls: (operator, bytes of its output).
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            first = args[0]
            tensors = [first] if isinstance(first, Tensor) else first
            flat = [t for x in tensors for t in ([x] if isinstance(x, Tensor) else x)]
            self.calls.append(
                (func._schema.name.removeprefix("c10d::"), sum(t.nbytes for t in flat))
            )
        return func(*args, **(kwargs or {}))

    def bytes_of(self, *names: str) -> int:
        return sum(size for name, size in self.calls if name in names)


def gathered_bytes(run: Callable[[], object]) -> int:
    """The output bytes of all gathers in `run`, also of those inside operators, which a dispatch
    mode does not see."""
    counted: list[int] = []
    gather = dist.all_gather_into_tensor

    def counting(output: Tensor, *args: Any, **kwargs: Any) -> Any:
        counted.append(output.nbytes)
        return gather(output, *args, **kwargs)

    dist.all_gather_into_tensor = counting
    try:
        run()
    finally:
        dist.all_gather_into_tensor = gather
    return sum(counted)
