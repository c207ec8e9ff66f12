"""One step: features, the loss over all pairs, gradients, new weights.

A step's batch may be larger than what fits in memory with its graph. It is then cut into K
micro-batches: their features are computed without a graph, the loss once, over all of them, gives
the features' gradients, and each micro-batch is computed again, with a graph, to take its share of
them back to the weights. The result is the whole batch's (GradCache: Gao et al. 2021,
arXiv 2101.06983), but for BatchNorm, whose statistics are each micro-batch's.

B samples of a micro-batch, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from clipfast.data.batch import Batch
from clipfast.models.recompute import statistics_untouched
from clipfast.train.engines.engine import Encoded, Engine
from clipfast.train.objectives import Losses
from clipfast.train.random_state import RandomState


class Outcome(NamedTuple):
    """What became of a step.

    Attributes:
        losses: each part by its name, and "loss", their sum; the same on all ranks.
        logit_scale: the multiplier that the loss was computed with.
        grad_norm: None where there was none to compute.
        fault: why the step was not taken; None if it was.
    """

    losses: dict[str, float]
    logit_scale: float
    grad_norm: float | None
    fault: str | None


def take_step(
    engine: Engine,
    objective: Callable[[Encoded, Batch], Losses],
    batch: Batch,
    *,
    micro_batches: int,
    lr: float,
) -> Outcome:
    """Forward, backward and update; on any fault the weights stay as they are.

    Args:
        objective: the loss of all the features, over all ranks; the batch is the whole step's.
        batch: this rank's samples of the step.
        micro_batches: K, which divides their number.
        lr: the learning rate.
    """
    step = _Whole(engine, batch) if micro_batches == 1 else _Cut(engine, batch, micro_batches)
    losses = objective(step.encoded, batch)
    values = {name: part.item() for name, part in losses.parts.items()}
    values["loss"] = losses.total.item()
    scale = step.encoded.logit_scale.item()
    if not math.isfinite(values["loss"]):
        step.backward_nothing()
        return Outcome(values, scale, None, _describe_loss(values["loss"], step.encoded))
    step.backward(losses.total)
    stepped = engine.step(lr)
    fault = None if stepped.taken else "gradients are not finite"
    return Outcome(values, scale, stepped.grad_norm, fault)


class _Whole:
    """A step of one micro-batch."""

    def __init__(self, engine: Engine, batch: Batch) -> None:
        self.engine = engine
        self.encoded = engine.encode(batch)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def backward_nothing(self) -> None:
        self.engine.discard()


class _Cut:
    """A step of K micro-batches. The last one's graph is kept: it need not be computed again.

    Memory: one micro-batch's graph, and the features of all.
    """

    def __init__(self, engine: Engine, batch: Batch, micro_batches: int) -> None:
        self.engine = engine
        self.parts = batch.split(micro_batches)
        self.device = engine.model.logit_scale.device
        self.random = []
        features = []
        with torch.no_grad():
            for part in self.parts[:-1]:
                self.random.append(RandomState.now(self.device))
                features.append(engine.encode(part))
        self.kept = engine.encode(self.parts[-1], last=False)
        self.encoded = _leaves([*features, self.kept])

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        *d_again, d_kept = _split_gradients(self.encoded, [part.samples for part in self.parts])
        self._backward(self.kept, d_kept, last=False)
        for number, (part, d_part) in enumerate(zip(self.parts, d_again, strict=False), 1):
            last = number == len(d_again)
            with self.random[number - 1].restored(), statistics_untouched(self.engine.model):
                encoded = self.engine.encode(part, last=last)
            self._backward(encoded, d_part, last=last)

    def _backward(self, encoded: Encoded, d_encoded: Encoded, *, last: bool) -> None:
        """The scale's and the bias's gradients are the whole step's: they are added once."""
        products = [
            (x * d_x).sum()
            for x, d_x in zip(encoded[: None if last else 2], d_encoded, strict=False)
            if x is not None and d_x is not None and x.requires_grad
        ]
        if products:
            self.engine.backward(sum(products[1:], products[0]), last=last)

    def backward_nothing(self) -> None:
        self.engine.discard()


def _leaves(parts: list[Encoded]) -> Encoded:
    """All rows, as the loss's inputs; features of a locked tower need no gradient, but take one."""
    first = parts[0]
    return Encoded(
        torch.cat([part.image.detach() for part in parts]).requires_grad_(),
        torch.cat([part.text.detach() for part in parts]).requires_grad_(),
        first.logit_scale.detach().clone().requires_grad_(),
        None if first.logit_bias is None else first.logit_bias.detach().clone().requires_grad_(),
    )


def _split_gradients(leaves: Encoded, rows: list[int]) -> list[Encoded]:
    d_image, d_text, d_scale, d_bias = (None if x is None else x.grad for x in leaves)
    assert d_image is not None
    assert d_text is not None
    return [
        Encoded(image, text, d_scale, d_bias)  # type: ignore[arg-type]  # None only where x is
        for image, text in zip(d_image.split(rows), d_text.split(rows), strict=True)
    ]


def _describe_loss(loss: float, encoded: Encoded) -> str:
    bad = [int((~x.isfinite()).any(1).sum()) for x in (encoded.image, encoded.text)]
    return (
        f"loss is {loss}; of {len(encoded.image)} samples, features are not finite for {bad[0]} "
        f"images and {bad[1]} texts"
    )
