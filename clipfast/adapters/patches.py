"""Methods of single modules replaced, so that classes, parameters and state dicts stay as they are.

A replacement is a `functools.partial` of a function of clipfast's in the module's own attributes:
copying and pickling take it along, bound to the copy, and deleting it brings the method back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

_OURS = "clipfast."


def replace(module: nn.Module, method: str, function: Callable[..., Any]) -> None:
    """From now on ``module.method(*args)`` is ``function(module, *args)``."""
    setattr(module, method, partial(function, module))


def original(module: nn.Module, method: str) -> Callable[..., Any]:
    """What the module's class does."""
    return partial(getattr(type(module), method), module)


def restore(module: nn.Module) -> int:
    """Takes back every replacement; returns their number."""
    replaced = [name for name, value in vars(module).items() if _is_replacement(value)]
    for name in replaced:
        delattr(module, name)
    return len(replaced)


def is_replaced(module: nn.Module) -> bool:
    return any(map(_is_replacement, vars(module).values()))


def _is_replacement(value: object) -> bool:
    return isinstance(value, partial) and value.func.__module__.startswith(_OURS)
