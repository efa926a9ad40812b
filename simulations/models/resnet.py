"""A small residual network with batch normalisation."""

from typing import cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simulations.models.blueprint import Blueprint


@final
class ResidualBlock(nn.Module):
    """Two normalised convolutions of 3 × 3 beside a shortcut (He et al., 2016)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels_in, h, w) to (batch, channels, h / stride, w / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


@final
class ResNet(nn.Module):
    """ResNet-8: three residual blocks of 16, 32 and 64 channels (after He et al., 2016).

    Batch normalisation gives the state float running statistics and an integer counter per
    layer, which compression must leave exact.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        channels, _, _ = blueprint.check_image("resnet", 1)
        first, second, third = (blueprint.scaled(size) for size in (16, 32, 64))
        self.stem = nn.Conv2d(channels, first, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(first)
        self.blocks = nn.Sequential(
            ResidualBlock(first, first, 1),
            ResidualBlock(first, second, 2),
            ResidualBlock(second, third, 2),
        )
        self.head = nn.Linear(third, blueprint.num_classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, channels, height, width) to logits (batch, classes)."""
        x = self.stem(x).contiguous(memory_format=torch.channels_last)
        x = self.blocks(F.relu(self.norm(x)))
        return cast("Tensor", self.head(x.mean((2, 3))))
