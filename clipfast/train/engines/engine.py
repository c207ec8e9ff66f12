"""What every engine does: features forward, gradients back, one step of the weights.

B samples of a micro-batch, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from clipfast.data.batch import Batch


class Encoded(NamedTuple):
    """What the loss is made of.

    Attributes:
        image, text: (B, D), not of unit length; bfloat16 where the towers compute in it, else
            float32.
        logit_scale: the multiplier, 0-dim float32.
        logit_bias: 0-dim float32, or None for a model without one.
    """

    image: Tensor
    text: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None


class Stepped(NamedTuple):
    """Attributes:
    taken: False where gradients were not finite, on all ranks: weights and state are as before.
    grad_norm: the global L2 norm before clipping, where it was computed and is finite.
    """

    taken: bool
    grad_norm: float | None


class Engine(Protocol):
    """Attributes:
    name: of the kind of engine, in the checkpoints that only it reads.
    model: the bare model, ours or open_clip's: for names, modes and evaluation.
    """

    name: str
    model: Any

    def encode(self, batch: Batch, *, last: bool = True) -> Encoded:
        """Both towers' features, with a graph unless gradients are switched off.

        Args:
            last: the step's last `backward` will be through this graph.
        """

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """Adds to the gradients.

        Args:
            last: of the step; only then do ranks exchange gradients. A step begins with none.
        """

    def step(self, lr: float) -> Stepped:
        """Clips, updates, clamps the scale to 100, and forgets the gradients.

        Args:
            lr: of each group whose "lr_scale" is 1, or missing.
        """

    def discard(self) -> None:
        """Forgets the gradients of a step that is not taken, and what its forward began."""

    def whole_model(self) -> AbstractContextManager[Any]:
        """The bare model with all its weights in this process, on every rank. To be entered by all
        ranks, and the weights only read."""

    def checkpoint(self) -> dict[str, Any] | None:
        """Collective. On rank 0 {state_dict, optimizer[, scaler]} in open_clip's form, with tensors
        that may be the live ones; None on the others."""

    def load_checkpoint(self, checkpoint: dict[str, Any], where: str) -> None:
        """Loads what `checkpoint` gave, or open_clip's trainer wrote, on every rank; what is
        missing stays as it is.

        Args:
            where: names it in errors.

        Raises:
            UserError: it is of other parameters.
        """

    def snapshot(self, folder: Path) -> Callable[[], None]:
        """Collective. Copies what the next step would change, and returns what writes this rank's
        files into the folder, from a thread, while training goes on."""

    def restore(self, folder: Path, saved_world_size: int, where: str) -> None:
        """Collective. Loads what the ranks of a run wrote by `snapshot`, whatever their number.

        Raises:
            UserError: it is of another model or engine.
        """
