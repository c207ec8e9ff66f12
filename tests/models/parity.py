"""What comparisons with other libraries' models share."""

from torch import nn


def randomise_batch_norms(model: nn.Module) -> None:
    """bn3.weight starts at 0 and would hide its whole branch."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
