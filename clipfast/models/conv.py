"""The demo's image tower: a stack of 3×3 convolutions and a linear head.

Locality and small shifts are built in, so a few thousand images and minutes of a CPU suffice
where a vision transformer would first have to learn them.

Shapes: B batch, S image side.
"""

from collections.abc import Sequence

import torch
from torch import nn

from clipfast.errors import UserError
from clipfast.models.locking import lock_groups


class ConvTower(nn.Module):
    """Image features from stages of 3×3 convolutions, each halving the side, and a linear head.

    A stage is `blocks` times (convolution without bias, BatchNorm, ReLU) and a 2×2 max pool; the
    side is rounded up when it is odd. The head is linear in the whole last map, so it knows where
    things are.

    Args:
        embed_dim: width of the features.
        image_size: S, side of the square images in pixels.
        channels: width of each stage, first to last.
        blocks: convolutions in each stage.
    Raises:
        UserError: no stage, or a number below 1.
    """

    def __init__(
        self, embed_dim: int, *, image_size: int, channels: Sequence[int], blocks: int = 2
    ) -> None:
        super().__init__()
        if not channels or min(embed_dim, image_size, blocks, *channels) < 1:
            raise UserError(
                "conv tower: embed_dim, image_size, blocks, channels: expected at least 1 each; "
                f"got {embed_dim}, {image_size}, {blocks}, {list(channels)}"
            )
        self.image_size, self.freeze_bn_stats = image_size, False
        stages: list[nn.Module] = []
        width, side = 3, image_size
        for stage_width in channels:
            for _ in range(blocks):
                stages += [
                    nn.Conv2d(width, stage_width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(stage_width),
                    nn.ReLU(inplace=True),
                ]
                width = stage_width
            stages.append(nn.MaxPool2d(2, ceil_mode=True))
            side = -(-side // 2)
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(width * side * side, embed_dim)
        self.init_parameters()

    def init_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.head.weight, std=self.head.in_features**-0.5)
        nn.init.zeros_(self.head.bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Normalised images, float (B, 3, S, S) in any memory format → features (B, embed_dim),
        not normalised."""
        return self.head(self.stages(image).flatten(1))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Raises:
        UserError: asked to; a tower this small has nothing to gain.
        """
        if enable:
            raise UserError("--grad-checkpointing: expected a ViT or ResNet; got a conv tower")

    def lock(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freezes all but the last groups of: the stages, head.

        Args:
            freeze_bn_stats: BatchNorms in frozen groups normalise with the statistics that they
                have, and keep them.
        """
        stages: list[list[nn.Module]] = [[]]
        for module in self.stages:
            stages[-1].append(module)
            if isinstance(module, nn.MaxPool2d):
                stages.append([])
        lock_groups([*stages[:-1], [self.head]], unlocked_groups)
        self.freeze_bn_stats = freeze_bn_stats
