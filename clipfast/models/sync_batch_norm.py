"""BatchNorm over the batches of all ranks, on a CPU too, where torch has none.

B samples of a rank, C channels, h × w positions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipfast.errors import UserError

_OVER = (0, 2, 3)


def synchronize_batch_norms(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Lets BatchNorms of a model take mean and variance over all ranks' samples.

    On CUDA devices they become torch's SyncBatchNorm, on the CPU `SyncBatchNorm2d`. Parameters,
    buffers, their names and their order stay.

    Args:
        model: changed in place; on its device.
        group: every rank of which computes the same layers in the same order.

    Raises:
        UserError: a BatchNorm of another class than torch's BatchNorm2d, such as timm's, which
            have an activation inside.
    """
    process_group = None if group is dist.group.WORLD else group  # None can be copied and pickled
    for name, norm in list(model.named_modules()):
        if not isinstance(norm, _BatchNorm):
            continue
        if type(norm) is not nn.BatchNorm2d:
            raise UserError(
                f"--use-bn-sync: expected torch's BatchNorm2d; got {type(norm).__name__} in {name}"
            )
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _synchronized(norm, process_group))


def _synchronized(norm: nn.BatchNorm2d, group: dist.ProcessGroup | None) -> nn.Module:
    if norm.weight.is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(norm, group)
    return SyncBatchNorm2d.of(norm, group)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d, whose batch in training is that of all ranks. A rank may have more samples
    than another, but not none."""

    process_group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, norm: nn.BatchNorm2d, group: dist.ProcessGroup | None) -> SyncBatchNorm2d:
        """With the parameters and buffers of `norm` themselves.

        Args:
            group: None is that of all processes.
        """
        new = cls(norm.num_features, norm.eps, norm.momentum, device="meta")
        new.weight, new.bias = norm.weight, norm.bias
        new.running_mean, new.running_var = norm.running_mean, norm.running_var
        new.num_batches_tracked = norm.num_batches_tracked
        new.track_running_stats = norm.track_running_stats
        new.process_group = group
        return new.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same."""
        if not self.training:
            return super().forward(x)
        y, mean, var, count = _Normalize.apply(
            x, self.weight, self.bias, self.eps, self.process_group
        )
        if self.track_running_stats:
            self._move_statistics(mean, var * (count / (count - 1)))
        result: Tensor = y
        return result

    @torch.no_grad()
    def _move_statistics(self, mean: Tensor, unbiased_var: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased_var.to(self.running_var.dtype), share)


class _Normalize(torch.autograd.Function):
    """y, and the mean, biased variance and number of values by which it was normalised."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.double()  # Σx² − (Σx)²/n would lose the variance of a large mean in float32
        own_count = wide.new_tensor([x.numel() // x.shape[1]])
        sums = torch.cat([own_count, wide.sum(_OVER), wide.square().sum(_OVER)])
        dist.all_reduce(sums, group=group)
        count, (mean, square) = sums[0], sums[1:].view(2, -1) / sums[0]
        var = (square - mean.square()).clamp_(min=0)
        inverse = (var + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.group = group
        ctx.mark_non_differentiable(mean, var, count)
        y = _centred(x, mean, inverse) * _by_channel(weight) + _by_channel(bias)
        return y.to(x.dtype), mean, var, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_y: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        x_hat = _centred(x, mean, inverse)
        d_y = d_y.to(x_hat.dtype)
        d_bias, d_weight = d_y.sum(_OVER), (d_y * x_hat).sum(_OVER)
        sums = torch.stack([d_bias, d_weight]).double()
        dist.all_reduce(sums, group=ctx.group)
        of_mean, of_var = (sums / count).to(x_hat.dtype)
        d_x = d_y - _by_channel(of_mean) - x_hat * _by_channel(of_var)
        d_x *= _by_channel(weight * inverse.to(weight.dtype))
        return d_x.to(x.dtype), d_weight.to(weight.dtype), d_bias.to(weight.dtype), None, None


def _centred(x: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    """(x − mean)·inverse in float32, or float64 for float64."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (x.to(dtype) - _by_channel(mean.to(dtype))) * _by_channel(inverse.to(dtype))


def _by_channel(values: Tensor) -> Tensor:
    return values[:, None, None]
