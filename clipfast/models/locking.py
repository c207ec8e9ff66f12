"""Locking towers: which parameters train, and in which mode the rest computes.

Source: Zhai et al. 2022 (LiT), arXiv 2111.07991.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipfast.errors import UserError

Part = nn.Module | nn.Parameter

_TEXT_PARTS = (
    "token_embedding",
    "positional_embedding",
    "cls_emb",
    "transformer",
    "ln_final",
    "text_projection",
)


def lock_groups(groups: Sequence[Sequence[Part]], unlocked: int) -> None:
    """Freezes all groups but the last `unlocked`.

    Args:
        groups: from the input to the output; together the whole tower.
        unlocked: as many groups as there are, or more, freeze none.

    Raises:
        UserError: unlocked is below 0.
    """
    if unlocked < 0:
        raise UserError(f"unlocked groups: expected 0 to {len(groups)}; got {unlocked}")
    first_unlocked = len(groups) - unlocked
    for number, group in enumerate(groups):
        for parameter in parameters_of(group):
            parameter.requires_grad_(number >= first_unlocked)


def unlock_layer_norms(parts: Iterable[Part]) -> None:
    for part in parts:
        if isinstance(part, nn.Module):
            for module in part.modules():
                if isinstance(module, nn.LayerNorm):
                    module.requires_grad_(True)


def parameters_of(parts: Iterable[Part]) -> Iterator[nn.Parameter]:
    for part in parts:
        if isinstance(part, nn.Module):
            yield from part.parameters()
        else:
            yield part


def is_locked(parts: Iterable[Part]) -> bool:
    """No parameter requires a gradient."""
    return not any(parameter.requires_grad for parameter in parameters_of(parts))


def text_parts(model: Any) -> list[Part]:
    """What computes the text features of a model with open_clip's names, up to the head that
    `TwoTowers.text_head` tells apart."""
    if hasattr(model, "text_trunk_parts"):
        parts: list[Part] = model.text_trunk_parts()
        return parts
    if hasattr(model, "text"):
        return [model.text]
    return clip_text_parts(model)


def clip_text_parts(model: Any) -> list[Part]:
    """Of a model whose text tower has no module of its own."""
    found = (getattr(model, name, None) for name in _TEXT_PARTS)
    return [part for part in found if part is not None]


def rest_locked_towers(model: nn.Module) -> None:
    """After ``model.train()``: towers that are locked compute as in evaluation, without dropout.

    BatchNorms go on collecting statistics, as in open_clip, unless their tower was locked with
    `freeze_bn_stats`, which it keeps as an attribute; then those with frozen parameters rest too.
    """
    visual: Any = model.visual
    towers = [visual, *(part for part in text_parts(model) if isinstance(part, nn.Module))]
    for tower in towers:
        if is_locked([tower]):
            tower.eval()
    for norm in _batch_norms(visual):
        norm.train(not (_freezes_statistics(visual) and is_locked([norm])))


def is_constant(tower: nn.Module) -> bool:
    """Training changes neither parameters nor BatchNorms' statistics, so features stay the same."""
    moving = not _freezes_statistics(tower) and any(True for _ in _batch_norms(tower))
    return is_locked([tower]) and not moving


def graph_only_if_needed(parts: Iterable[Part], *inputs: Tensor) -> torch.set_grad_enabled:
    """No autograd where neither a part nor an input requires a gradient."""
    needed = any(x.requires_grad for x in inputs) or not is_locked(parts)
    return torch.set_grad_enabled(torch.is_grad_enabled() and needed)


def _freezes_statistics(tower: Any) -> bool:
    return bool(getattr(tower, "freeze_bn_stats", False))


def _batch_norms(tower: nn.Module) -> Iterator[_BatchNorm]:
    return (module for module in tower.modules() if isinstance(module, _BatchNorm))
