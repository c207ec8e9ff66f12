"""The loss of a step: CLIP's softmax, SigLIP's sigmoid, or the softmax beside a teacher's.

B samples of a step on each of W ranks, D features.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from clipfast_kernels import contrastive_loss, sigmoid_loss, start_gather
from torch import Tensor

from clipfast.data.batch import Batch
from clipfast.data.images.normalize import Normalize
from clipfast.encoder import Encoder
from clipfast.ranks.world import World
from clipfast.train.distillation import distillation_loss
from clipfast.train.engines.engine import Encoded
from clipfast.train.model import computed_precision, make_teacher, preprocess_of_teacher


class Losses(NamedTuple):
    """Attributes:
    total: 0-dim, the sum of the parts; its gradient, averaged over ranks, is that of the loss over
        all ranks' pairs.
    parts: open_clip's names, the same values on every rank.
    """

    total: Tensor
    parts: dict[str, Tensor]


# The features may be leaves: the loss needs no more of a model than what is in them.
Objective = Callable[[Encoded, Batch], Losses]


def make_objective(
    args: argparse.Namespace, model: Any, world: World, device: torch.device
) -> Objective:
    """The loss that the flags ask for, over all ranks' pairs.

    Args:
        model: the student, which a teacher must be shown the same batches as.

    Raises:
        UserError: a teacher that cannot be had, or takes other images or texts.
    """
    if args.siglip:
        return Sigmoid(world.group, args.backend)
    if args.distill_model is None:
        return Softmax(world.group, args.backend)
    teacher = make_teacher(args, model, device)
    pixels = preprocess_of_teacher(args)
    encoder = Encoder(
        teacher,
        precision=computed_precision(args, device),
        normalize=Normalize(pixels.mean, pixels.std, device),
        device=device,
        compiled=args.torchcompile,
    )
    return Distillation(world.group, args.backend, encoder, args.accum_freq)


def describe(args: argparse.Namespace, world: World) -> Iterator[str]:
    """Lines of the log."""
    if world.size > 1 and not args.siglip and not (args.local_loss and args.gather_with_grad):
        yield (
            "loss: --local-loss and --gather-with-grad are taken as given; the gradient is that of "
            "the loss over all ranks"
        )
    if args.siglip and args.loss_dist_impl is not None:
        yield (
            f"loss: --loss-dist-impl {args.loss_dist_impl}: features are gathered; the gradient "
            "is every implementation's"
        )
    if args.distill_model is not None:
        yield f"distillation: from {args.distill_model}, {args.distill_pretrained}"


@dataclass(frozen=True)
class Softmax:
    """`clipfast_kernels.contrastive_loss`; a bias of the model's has no effect on it."""

    group: dist.ProcessGroup | None
    backend: str

    def __call__(self, encoded: Encoded, batch: Batch) -> Losses:
        loss = contrastive_loss(
            encoded.image,
            encoded.text,
            encoded.logit_scale,
            group=self.group,
            backend=self.backend,
        )
        return Losses(_with_bias(loss, encoded), {"contrastive_loss": loss})


@dataclass(frozen=True)
class Sigmoid:
    """`clipfast_kernels.sigmoid_loss`."""

    group: dist.ProcessGroup | None
    backend: str

    def __call__(self, encoded: Encoded, batch: Batch) -> Losses:
        loss = sigmoid_loss(
            encoded.image,
            encoded.text,
            encoded.logit_scale,
            0.0 if encoded.logit_bias is None else encoded.logit_bias,
            group=self.group,
            backend=self.backend,
        )
        return Losses(loss, {"contrastive_loss": loss})


class Distillation:
    """The softmax, and as much again of the teacher's similarities (`distillation_loss`).

    Args:
        group, backend: as `Softmax`.
        teacher: its encoder; it is in evaluation and never trained.
        micro_batches: in how many parts the teacher sees a step's batch.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        backend: str,
        teacher: Encoder,
        micro_batches: int,
    ) -> None:
        self.group, self.backend = group, backend
        self.teacher, self.micro_batches = teacher, micro_batches

    def __call__(self, encoded: Encoded, batch: Batch) -> Losses:
        # Its panels are of float32.
        features = encoded.image.float(), encoded.text.float()
        image, text = (start_gather(x, self.group) for x in features)
        teacher_image, teacher_text, teacher_scale = self._teach(batch)
        contrastive = contrastive_loss(
            image, text, encoded.logit_scale, group=self.group, backend=self.backend
        )
        distill = distillation_loss(
            image,
            text,
            encoded.logit_scale,
            teacher_image,
            teacher_text,
            teacher_scale,
            group=self.group,
        )
        parts = {"contrastive_loss": contrastive, "distill_loss": distill}
        return Losses(_with_bias(contrastive + distill, encoded), parts)

    @torch.no_grad()
    def _teach(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        parts = batch.split(self.micro_batches)
        image = torch.cat([self.teacher.image(part).float() for part in parts])
        text = torch.cat([self.teacher.text(part).float() for part in parts])
        return image, text, self.teacher.model.logit_scale.float().exp().reshape(())


def _with_bias(loss: Tensor, encoded: Encoded) -> Tensor:
    """A softmax does not depend on a bias; its gradient of zero is what data parallelism awaits."""
    return loss if encoded.logit_bias is None else loss + 0 * encoded.logit_bias
