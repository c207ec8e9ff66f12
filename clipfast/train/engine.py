"""What turns a loss into a step of the weights. One process; the interface is the one that other
engines (data parallel, ZeRO) fill in."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from clipfast.models.clip import CLIP
from clipfast.train.optimizer import load_optimizer_state

_MAX_LOG_SCALE = math.log(100)


class PlainEngine:
    """Backward, clip, step, and the clamp of the scale, in this process.

    Args:
        model: trained in place.
        optimizer: over the model's parameters.
        max_norm: gradients are scaled to this global L2 norm if larger; None leaves them.
    """

    def __init__(
        self, model: CLIP, optimizer: torch.optim.Optimizer, max_norm: float | None
    ) -> None:
        self.model, self.optimizer, self.max_norm = model, optimizer, max_norm

    def backward(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()

    def step(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, _MAX_LOG_SCALE)

    def state_dict(self) -> dict[str, Any]:
        return {"state_dict": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_optimizer(self, state: dict[str, Any]) -> None:
        load_optimizer_state(self.optimizer, state)
