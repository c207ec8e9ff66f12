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
        return nullcontext(), statistics_untouched(block)

    # Whether they move now is no answer: the backward may come after `statistics_untouched`.
    norms = block.training and any(isinstance(m, _BatchNorm) for m in block.modules())
    extra: dict[str, Any] = {"context_fn": contexts} if norms else {}
    out: Tensor = checkpoint(block, *arguments, use_reentrant=False, **extra)
    return out


@contextmanager
def statistics_untouched(module: nn.Module) -> Iterator[None]:
    """BatchNorms in the module, of any kind, compute as they would, and neither move their running
    statistics nor count the batch."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
