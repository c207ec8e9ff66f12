"""The calls of `gathered_similarity` that `verify` tries. n queries, N keys, D features."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from clipfast_kernels.ops.trial import (
    Trial,
    rows_class,
    rows_shapes,
)


def shape_class(queries: Tensor, keys: Tensor, *others: Tensor) -> str:
    """By this rank's keys and their width."""
    return rows_class(*keys.shape)


def trials(device: torch.device, dtype: torch.dtype) -> Iterator[Trial]:
    def draw(n: int, columns: int, d: int) -> Callable[[int], tuple[Tensor, ...]]:
        return lambda seed: _inputs(n, columns, d, device, dtype, seed)

    yield Trial("odd sizes", draw(67, 131, 35), _call, timed=False)
    for n, d in rows_shapes(device):
        yield Trial(rows_class(n, d), draw(n, n, d), _call)


def _inputs(
    n: int, columns: int, d: int, device: torch.device, dtype: torch.dtype, seed: int
) -> tuple[Tensor, ...]:
    """Small whole numbers: their float32 sums are exact, so that ranks and indices are either
    equal or wrong; and of both signs, too large for sums in 16 bits."""
    generator = torch.Generator().manual_seed(seed)
    queries, keys = (torch.randint(-8, 9, (rows, d), generator=generator) for rows in (n, columns))
    positives = torch.randint(0, columns, (n,), generator=generator).to(device)
    return queries.to(device, dtype), keys.to(device, dtype), positives


def _call(backend: str, queries: Tensor, keys: Tensor, positives: Tensor) -> dict[str, Tensor]:
    from clipfast_kernels.ops.similarity.api import gathered_similarity

    found = gathered_similarity(
        queries, keys, scale=1 / 64, positives=positives, topk=10, backend=backend
    )
    return {name: x for name, x in found._asdict().items() if x is not None}
