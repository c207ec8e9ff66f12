"""AdamW with open_clip's parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from clipfast.errors import UserError


def adamw(
    model: nn.Module, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.AdamW:
    """Fused AdamW over the parameters that are not locked. Group 0: gains, biases and the scale,
    which do not decay; group 1: the rest.

    The order of the groups and of the parameters in them is open_clip 3.3.0's, because a saved
    optimizer state knows its parameters by position only.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    plain = [p for n, p in named if _undecayed(n, p)]
    decayed = [p for n, p in named if not _undecayed(n, p)]
    groups = [
        {"params": plain, "weight_decay": 0.0},
        {"params": decayed, "weight_decay": weight_decay},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict, where: str) -> None:
    """Loads a saved state, ours or open_clip's; theirs would switch the fused step off, and leave
    its counters on the wrong device.

    Args:
        where: names the state's file in errors.

    Raises:
        UserError: the state is of other parameters.
    """
    sizes = [len(group["params"]) for group in state["param_groups"]]
    expected = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != expected:
        raise UserError(
            f"checkpoint {where}: optimizer: expected groups of {expected} parameters, of those "
            f"that train; got {sizes}: go on with the --lock flags that it was saved under"
        )
    groups = [group | {"fused": True, "foreach": None} for group in state["param_groups"]]
    optimizer.load_state_dict(state | {"param_groups": groups})


def _undecayed(name: str, parameter: nn.Parameter) -> bool:
    markers = ("bn", "ln", "bias", "logit_scale")
    return parameter.ndim < 2 or any(marker in name for marker in markers)


def learning_rate(step: int, *, base: float, warmup: int, total: int, decay: bool) -> float:
    """Linear warm-up over `warmup` steps, then a half cosine to 0 at `total`, or constant."""
    if step < warmup:
        return base * (step + 1) / warmup
    if not decay:
        return base
    progress = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * progress)) * base
