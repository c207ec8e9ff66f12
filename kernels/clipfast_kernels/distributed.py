"""Gathering features over the ranks of a process group: once, early, in the dtype they have.

Shapes: B rows on each of W ranks, N = W·B, D features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Row counts that a group has agreed on: {group name: {(rows, other sizes, dtype)}}.
_AGREED: dict[str, set[tuple[Any, ...]]] = {}
# Operators take strings, not process groups.
_GROUPS: dict[str, dist.ProcessGroup] = {}


class GatheredFeatures:
    """Features whose gather is under way; `start_gather` makes it.

    Accepted wherever a loss or `gathered_similarity` takes features, as often as wanted: the
    gather happens once.

    Attributes:
        local: this rank's (B, D) features, which receive the gradient.
        group: the process group; None where this process is alone.
    """

    def __init__(self, local: Tensor, group: dist.ProcessGroup | None, ragged: bool = False):
        self.local = local
        self.group = group
        self._rows: list[int] | None = None
        self._all: Tensor = local.detach()
        self._work: Any = None
        if group is None:
            return
        sent = local.detach()
        if ragged:
            self._rows = _row_counts(len(sent), group)
            sent = torch.cat([sent, sent.new_zeros(max(self._rows) - len(sent), *sent.shape[1:])])
        else:
            _check_equal(sent, group)
        self._all, self._work = _start(sent, group)

    def wait(self) -> Tensor:
        """All ranks' rows in rank order, (N, D), without gradient."""
        if self._work is not None:
            self._work.wait()
            self._work = None
            if self._rows is not None:
                chunks = self._all.chunk(len(self._rows))
                self._all = torch.cat([c[:n] for c, n in zip(chunks, self._rows, strict=True)])
        return self._all

    def first_row(self) -> int:
        """Where this rank's rows begin among all."""
        if self.group is None:
            return 0
        rank = dist.get_rank(self.group)
        return rank * len(self.local) if self._rows is None else sum(self._rows[:rank])


def start_gather(features: Tensor, group: dist.ProcessGroup | None) -> GatheredFeatures:
    """Starts gathering one tower's features, so that it overlaps what comes next.

    Equivalent PyTorch: ``all_gather_into_tensor(out, features.detach(), group, async_op=True)``.

    Example::

        image = start_gather(model.encode_image(images), group)  # returns at once
        text = model.encode_text(texts)
        loss = contrastive_loss(image, text, scale, group=group)

    Args:
        features: (B, D), with the same B on all ranks. They travel in the dtype they have.
        group: the process group, or None for this process alone (nothing is gathered).

    Returns:
        A handle that losses and `gathered_similarity` take in the features' place. Its gradient
        reaches `features`.

    Raises:
        TypeError: features is no tensor.
        ValueError: rows differ between ranks; raised on every rank.

    Memory: the (W·B, D) result.
    """
    if not isinstance(features, Tensor):
        raise TypeError(f"features: expected a tensor (B, D); got {type(features).__name__}")
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(
            f"features: expected shape (B, D), B and D ≥ 1; got {tuple(features.shape)}"
        )
    return GatheredFeatures(features, alone_is_none(group))


def alone_is_none(group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """The group, or None where it has only this process.

    Raises:
        TypeError: it is no process group.
        ValueError: this process is not in it.
    """
    if group is None:
        return None
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            "group: expected a torch.distributed process group that this process belongs to, "
            f"or None; got {type(group).__name__}"
        )
    if dist.get_world_size(group) == 1:
        return None
    _GROUPS[group.group_name] = group
    return group


def gathered(
    name: str,
    features: Tensor | GatheredFeatures,
    group: dist.ProcessGroup | None,
    ragged: bool = False,
) -> GatheredFeatures:
    """The features' handle, its gather started if it was not yet.

    Raises:
        ValueError: the handle was started with another group.
    """
    if not isinstance(features, GatheredFeatures):
        return GatheredFeatures(features, group, ragged)
    if features.group is not group:
        raise ValueError(
            f"{name}: expected a handle that was started with the call's group; got one of "
            f"{'no group' if features.group is None else 'another group'}"
        )
    return features


def local_rows(features: Any) -> Any:
    """A handle's own rows; anything else as it is."""
    return features.local if isinstance(features, GatheredFeatures) else features


def all_gather(x: Tensor, group: str) -> Tensor:
    """All ranks' x, in rank order along the first dimension; `group` is its name."""
    out, work = _start(x, _GROUPS[group])
    work.wait()
    return out


def _start(x: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Any]:
    """The one place that moves rows between ranks."""
    x = x.contiguous()
    out = x.new_empty(dist.get_world_size(group) * x.shape[0], *x.shape[1:])
    # As bytes: gloo knows fewer dtypes than torch.
    work = dist.all_gather_into_tensor(
        out.view(-1).view(torch.uint8), x.view(-1).view(torch.uint8), group=group, async_op=True
    )
    return out, work


def _row_counts(rows: int, group: dist.ProcessGroup) -> list[int]:
    counts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(counts, rows, group=group)
    return counts


def _check_equal(x: Tensor, group: dist.ProcessGroup) -> None:
    """Once per shape: later calls of the same shape pay nothing."""
    shape = (*x.shape, str(x.dtype))
    agreed = _AGREED.setdefault(group.group_name, set())
    if shape in agreed:
        return
    shapes: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(shapes, shape, group=group)
    if any(other != shape for other in shapes):
        raise ValueError(
            "features: expected the same shape and dtype on every rank of the group; "
            f"got {', '.join(f'{s[:-1]} {s[-1]}' for s in shapes)} on ranks 0 to {len(shapes) - 1}"
        )
    agreed.add(shape)
