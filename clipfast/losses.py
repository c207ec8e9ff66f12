"""open_clip's loss classes with clipfast's kernels inside: same arguments, same values, no N×N.

Features come in as open_clip's models give them, already of unit length.
"""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist
from clipfast_kernels import contrastive_loss, sigmoid_loss
from torch import Tensor, nn

_logger = logging.getLogger(__name__)


class ClipLoss(nn.Module):
    """CLIP's softmax loss over the pairs of all ranks; takes the place of `open_clip.ClipLoss`.

    Equivalent PyTorch: ``(F.cross_entropy(s·I·Tᵀ, labels) + F.cross_entropy(s·T·Iᵀ, labels)) / 2``
    on the features of all ranks.

    With several ranks the value is the mean over all pairs and the gradient, averaged over ranks,
    is that value's: what open_clip gives with ``local_loss`` and ``gather_with_grad``. Its other
    settings of the two give other gradients and are accepted as this one, which is said once.

    Args:
        local_loss, gather_with_grad: accepted in every combination; see above.
        cache_labels: accepted; there are no labels to cache.
        rank, world_size: of `torch.distributed.group.WORLD`, which is used if world_size > 1.
        use_horovod: must be False.

    Raises:
        ValueError: use_horovod.

    Memory: O(N·D) and one panel of similarities (`clipfast_kernels.contrastive_loss`).

    Source: Radford et al. 2021, arXiv 2103.00020; the interface is open_clip_torch 3.3.0's.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ):
        super().__init__()
        if use_horovod:
            raise ValueError("use_horovod: expected False, torch.distributed is used; got True")
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.use_horovod = use_horovod
        if world_size > 1 and not (local_loss and gather_with_grad) and rank == 0:
            _logger.info(
                "ClipLoss: local_loss and gather_with_grad are taken as True; "
                "the gradient is that of the loss over all ranks"
            )

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Args: (B, D) unit features, the multiplier, an added bias (which cancels out).

        Returns: the 0-dim loss, or ``{"contrastive_loss": loss}``.
        """
        image_features, text_features = _one_dtype(image_features, text_features)
        loss = contrastive_loss(
            image_features,
            text_features,
            logit_scale,
            normalize=False,
            group=_world(self.world_size),
        )
        if logit_bias is not None:
            loss = loss + 0 * logit_bias.sum()  # its zero gradient, which data parallelism awaits
        return {"contrastive_loss": loss} if output_dict else loss


class SigLipLoss(nn.Module):
    """SigLIP's sigmoid loss over the pairs of all ranks; for `open_clip.loss.SigLipLoss`.

    Equivalent PyTorch: ``-F.logsigmoid(y * (s·I·Tᵀ + b)).sum() / N``, y = 1 on pairs, −1 elsewhere.

    The value is that of all ranks' pairs on every rank, where open_clip's is each rank's share; the
    gradients' averages over ranks are equal.

    Args:
        cache_labels: accepted; there are no labels to cache.
        rank, world_size: of `torch.distributed.group.WORLD`, which is used if world_size > 1.
        dist_impl: None or one of open_clip's "bidir", "shift", "reduce", "gather"; all gather.

    Raises:
        ValueError: another dist_impl.

    Memory: `clipfast_kernels.sigmoid_loss`'s.

    Source: Zhai et al. 2023, arXiv 2303.15343; the interface is open_clip_torch 3.3.0's.
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
    ):
        super().__init__()
        if dist_impl not in (None, "bidir", "shift", "reduce", "gather"):
            raise ValueError(
                f"dist_impl: expected bidir, shift, reduce, gather or None; got {dist_impl!r}"
            )
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.dist_impl = dist_impl or "bidir"

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Args: (B, D) unit features, the multiplier, the added bias (None is 0).

        Returns: the 0-dim loss, or ``{"contrastive_loss": loss}``, open_clip's key.
        """
        image_features, text_features = _one_dtype(image_features, text_features)
        loss = sigmoid_loss(
            image_features,
            text_features,
            logit_scale,
            0.0 if logit_bias is None else logit_bias,
            normalize=False,
            group=_world(self.world_size),
        )
        return {"contrastive_loss": loss} if output_dict else loss


def _world(world_size: int) -> dist.ProcessGroup | None:
    return dist.group.WORLD if world_size > 1 else None


def _one_dtype(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Autocast may leave the towers' features in two dtypes."""
    dtype = torch.promote_types(image.dtype, text.dtype)
    return image.to(dtype), text.to(dtype)
