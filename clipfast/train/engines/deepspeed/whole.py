"""The whole model in every process, for a time: what evaluation, and a file, need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


@contextmanager
def gathered(deepspeed: Any, model: nn.Module, persistent: list[Any]) -> Iterator[None]:
    """Collective. All weights of a model that ZeRO-3 has cut.

    Meanwhile forwards are the ranks' own affair: DeepSpeed's hooks, which fetch weights that the
    other ranks must send, are off.

    Args:
        persistent: parameters that stay whole between steps.
    """
    with deepspeed.zero.GatheredParameters(list(model.parameters())), _hooks_off(model.modules()):
        yield
    if persistent:
        persistent[0].all_gather(persistent)


@contextmanager
def _hooks_off(modules: Iterable[nn.Module]) -> Iterator[None]:
    tables = [getattr(module, table) for module in modules for table in _HOOKS]
    before = [dict(table) for table in tables]
    for table, hooks in zip(tables, before, strict=True):
        for key, hook in hooks.items():
            if getattr(hook, "__module__", "").startswith("deepspeed."):
                del table[key]
    try:
        yield
    finally:
        for table, hooks in zip(tables, before, strict=True):
            table.clear()
            table.update(hooks)


@contextmanager
def as_scalars(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """These, of one element, without a dimension."""
    scalars = list(parameters)
    for p in scalars:
        p.data = p.data.view(())
    try:
        yield
    finally:
        for p in scalars:
            p.data = p.data.view(1)
