"""What turns a loss into a step of the weights. One process; the interface is the one that other
engines (data parallel, ZeRO) fill in."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from clipfast.train.optimizer import load_optimizer_state

_MAX_LOG_SCALE = math.log(100)


class PlainEngine:
    """Backward, clip, step, and the clamp of the scale, in this process.

    Args:
        model: trained in place.
        optimizer: over the model's parameters.
        max_norm: gradients are scaled to this global L2 norm if larger; None leaves them.
        scaler: multiplies the loss of float16 autocast, and skips steps whose gradients overflow;
            None where nothing is multiplied.
    """

    def __init__(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer,
        max_norm: float | None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.max_norm, self.scaler = max_norm, scaler

    def backward(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, _MAX_LOG_SCALE)

    def state_dict(self) -> dict[str, Any]:
        """In open_clip's form: state_dict, optimizer, and scaler where there is one."""
        state = {"state_dict": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        return state

    def load_training_state(self, checkpoint: dict[str, Any], where: str) -> None:
        """Loads what the checkpoint has of optimizer and scaler.

        Args:
            where: names the checkpoint in errors.

        Raises:
            UserError: the optimizer's state is of other parameters.
        """
        if "optimizer" in checkpoint:
            load_optimizer_state(self.optimizer, checkpoint["optimizer"], where)
        if self.scaler is not None and "scaler" in checkpoint:
            self.scaler.load_state_dict(checkpoint["scaler"])
