"""Gradient checkpointing: a block's inputs are kept, what it computes is computed again in the
backward. Source: Chen et al. 2016, arXiv 1604.06174."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, *arguments: Any) -> Tensor:
    """``block(*arguments)``, whose backward computes it again.

    BatchNorm sees each batch once: the second time it leaves its running statistics alone.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_untouched(norms)

    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    extra: dict[str, Any] = {"context_fn": contexts} if norms and block.training else {}
    out: Tensor = checkpoint(block, *arguments, use_reentrant=False, **extra)
    return out


@contextmanager
def _statistics_untouched(norms: list[Any]) -> Iterator[None]:
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)
