"""An exponential moving average of the weights, to evaluate and to keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from clipfast.errors import UserError


class Ema:
    """a ← d·a + (1 − d)·w after each step, of the parameters that train and of the BatchNorms'
    statistics, in float32; d = min(decay, (1 + n) / (10 + n)) after n updates, as an average of few
    steps should not remember where the weights began.

    With DeepSpeed it is made after the engine, which reshapes parameters. ZeRO 1 and 2 leave all
    weights on every rank, in the engine's precision, and it averages those; ZeRO 3 leaves none. A
    run that is resumed makes it from the weights that it goes on with, and then loads its state.

    Args:
        model: whose weights are averaged; locked parameters are not.
        decay: the share of the average that stays at each step, such as 0.9999.

    Memory: 4 bytes for each parameter that trains, on every rank. An update reads the weights once
    and reads and writes the average once; evaluation needs no copy of float32 weights.

    Raises:
        UserError: a rank holds a part of the weights only.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.updates = model, decay, 0
        self._live = _averaged(model)
        if any(hasattr(x, "ds_id") for x in self._live.values()):
            raise UserError(
                "--ema-decay: expected weights that are whole on each rank; got ZeRO stage 3, "
                "which has them in parts: take --zero-stage 2 or less"
            )
        with torch.no_grad():
            self._averages = {
                name: x.detach().to(torch.float32, copy=True) for name, x in self._live.items()
            }

    @torch.no_grad()
    def update(self) -> None:
        """To be called after each step of the weights that was taken."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        live = [x.detach().float() for x in self._live.values()]
        get_ema_multi_avg_fn(decay)(list(self._averages.values()), live, self.updates)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the model has the averages for weights; behind it, whatever was raised, the
        very tensors that it had before. Nothing in it may train."""
        before = [x.data for x in self._live.values()]
        try:
            for name, x in self._live.items():
                x.data = self._averages[name].to(x.dtype)
            yield
        finally:
            for x, data in zip(self._live.values(), before, strict=True):
                x.data = data

    def weights(self) -> dict[str, Tensor]:
        """The model's state dict with the averages in it: the live tensors, which the next update
        changes."""
        with self.applied():
            return dict(self.model.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """{decay, updates, averages: by the names of the model's state dict}; the tensors are the
        live ones."""
        return {"decay": self.decay, "updates": self.updates, "averages": dict(self._averages)}

    def load_state_dict(self, state: dict[str, Any], where: str) -> None:
        """Loads what `state_dict` gave; the decay stays the one that this was made with.

        Args:
            where: names the state's file in errors.

        Raises:
            UserError: the state is of other parameters.
        """
        saved = state["averages"]
        differing = sorted(saved.keys() ^ self._averages.keys()) or [
            name for name, x in self._averages.items() if saved[name].numel() != x.numel()
        ]
        if differing:
            raise UserError(
                f"checkpoint {where}: EMA: expected averages of the {len(self._averages)} tensors "
                f"that train; got others, such as {differing[0]}: go on with the --model and the "
                "--lock flags that it was saved under"
            )
        for name, average in self._averages.items():
            average.copy_(saved[name].view_as(average))  # DeepSpeed's scalars have one dimension
        self.updates = state["updates"]


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that train, and the statistics that evaluation reads, by name."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kept = model.state_dict().keys()  # other buffers are constants, −∞ among them
    statistics = {
        name: x for name, x in model.named_buffers() if name in kept and x.is_floating_point()
    }
    return parameters | statistics
