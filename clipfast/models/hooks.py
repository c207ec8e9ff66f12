"""Who watches a module: people's hooks want whole blocks, a framework's own do not care."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn

_TABLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_FRAMEWORKS = ("deepspeed.", "torch.distributed.", "torch._", "transformers.", "accelerate.")


def has_user_hooks(*modules: nn.Module) -> bool:
    """Whether one of the modules, or one inside them, has a hook that is not a framework's own.

    torch.compile traces none: it takes the modules as unwatched.
    """
    if torch.compiler.is_compiling():
        return False
    return any(map(_has_user_hook, chain.from_iterable(m.modules() for m in modules)))


def _has_user_hook(module: nn.Module) -> bool:
    hooks = chain.from_iterable(getattr(module, table).values() for table in _TABLES)
    return any(not _origin(hook).startswith(_FRAMEWORKS) for hook in hooks)


def _origin(hook: object) -> str:
    return f"{getattr(hook, '__module__', None) or type(hook).__module__}."
