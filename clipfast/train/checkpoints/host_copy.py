"""Copies that stay as they are while training goes on."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor


def host_copy(content: Any) -> Any:
    """`content` with every tensor copied to the CPU's memory, at any depth of dicts, lists and
    tuples. What stands under several names is copied once, and so is written once.

    Memory: that of all tensors in it.
    """
    return _copied(content, {})


def _copied(content: Any, copies: dict[Any, Tensor]) -> Any:
    if isinstance(content, Tensor):
        place = (content.device, content.data_ptr(), content.dtype)
        key = (*place, tuple(content.shape), tuple(content.stride()))
        if key not in copies:
            copies[key] = content.detach().to("cpu", copy=True)
        return copies[key]
    if isinstance(content, dict):
        copied = copy.copy(content)  # a state dict has attributes of its own
        for name, value in content.items():
            copied[name] = _copied(value, copies)
        return copied
    if isinstance(content, (list, tuple)):
        return type(content)(_copied(value, copies) for value in content)
    return content
