"""Every process holds the whole model: one alone, or several that average their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clipfast.data.batch import Batch
from clipfast.encoder import Encoder
from clipfast.ranks.world import World
from clipfast.train.checkpoints.host_copy import host_copy
from clipfast.train.engines.engine import Encoded, Stepped
from clipfast.train.engines.towers import MAX_LOG_SCALE, Towers
from clipfast.train.optim.finite import finite_norm
from clipfast.train.optim.optimizers import load_optimizer_state
from clipfast.weights.checkpoint import read_checkpoint, save_checkpoint
from clipfast.weights.loading import load_weights

_FILE = "model.pt"


class PlainEngine:
    """Args:
    model: trained in place.
    optimizer: over the model's parameters.
    encoder: of the model.
    world: the processes; gradients are averaged over them.
    max_norm: gradients are scaled to this global L2 norm if larger; None leaves them.
    scaler: multiplies the loss of float16 autocast, and skips steps whose gradients overflow; None
        where nothing is multiplied.
    static_graph: every step uses the same parameters, which DistributedDataParallel may rely on.
    """

    name = "plain"

    def __init__(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer,
        encoder: Encoder,
        world: World | None = None,
        *,
        max_norm: float | None = None,
        scaler: torch.amp.GradScaler | None = None,
        static_graph: bool = False,
    ) -> None:
        self.model, self.optimizer, self.world = model, optimizer, world or World()
        self.max_norm, self.scaler = max_norm, scaler
        self._towers: nn.Module = Towers(model, encoder)
        if self.world.size > 1:
            self._towers = DistributedDataParallel(
                self._towers,
                process_group=self.world.group,
                gradient_as_bucket_view=True,
                static_graph=static_graph,
            )

    def encode(self, batch: Batch, *, last: bool = True) -> Encoded:
        with self._exchange(last):
            encoded: Encoded = self._towers(batch)
        return encoded

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        with self._exchange(last):
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def _exchange(self, last: bool) -> Any:
        towers = self._towers
        if last or not isinstance(towers, DistributedDataParallel):
            return nullcontext()
        return towers.no_sync()

    def step(self, lr: float) -> Stepped:
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        taken = self._update(norm is not None)
        self.discard()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOG_SCALE)
        return Stepped(taken, norm)

    def _clip(self) -> float | None:
        """The gradients' norm before it; None where they are not finite."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = finite_norm([p.grad for p in parameters])
        if self.max_norm is not None and norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_norm, torch.tensor(norm))
        return norm

    def _update(self, finite: bool) -> bool:
        if self.scaler is None:
            if finite:
                self.optimizer.step()
            return finite
        self.scaler.step(self.optimizer)  # not taken where `unscale_` met an overflow
        self.scaler.update()
        # Overflows are how the scaler finds its scale; there is none to find below 1.
        return finite or self.scaler.get_scale() >= 1.0

    def discard(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def whole_model(self) -> Iterator[Any]:
        if self.world.group is not None:
            for buffer in self.model.buffers():  # of BatchNorm: the main rank's are what is saved
                torch.distributed.broadcast(buffer, 0, self.world.group)
        yield self.model

    def checkpoint(self) -> dict[str, Any] | None:
        if not self.world.is_main:
            return None
        state = {"state_dict": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        return state

    def load_checkpoint(self, checkpoint: dict[str, Any], where: str) -> None:
        load_weights(self.model, checkpoint["state_dict"], where, resize=False)
        if "optimizer" in checkpoint:
            load_optimizer_state(self.optimizer, checkpoint["optimizer"], where)
        if self.scaler is not None and "scaler" in checkpoint:
            self.scaler.load_state_dict(checkpoint["scaler"])

    def snapshot(self, folder: Path) -> Callable[[], None]:
        state = host_copy(self.checkpoint())
        if state is None:
            return lambda: None
        return lambda: save_checkpoint(folder / _FILE, state)

    def restore(self, folder: Path, saved_world_size: int, where: str) -> None:
        self.load_checkpoint(read_checkpoint(folder / _FILE), where)
