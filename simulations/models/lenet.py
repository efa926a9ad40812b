"""A convolutional network after LeNet-5."""

from typing import cast, final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from simulations.models.blueprint import Blueprint
from simulations.models.channels_last import channels_last_on_cpu

_SMALLEST_IMAGE = 4
# Traced as one operation, since what it does depends on where a tensor lies.
fx.wrap("channels_last_on_cpu")


@final
class LeNet(nn.Module):
    """Two convolutions of 5 × 5 with max-pooling, then two dense layers.

    After LeCun et al. (1998), with ReLU and 16 and 32 channels. On a CPU both convolutions run
    in channels-last order, in which max-pooling is ten times faster.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        channels, height, width = blueprint.check_image("lenet", _SMALLEST_IMAGE)
        first, second, dense = (blueprint.scaled(size) for size in (16, 32, 64))
        self.conv1 = nn.Conv2d(channels, first, 5, padding=2)
        self.conv2 = nn.Conv2d(first, second, 5, padding=2)
        self.dense = nn.Linear(second * (height // 4) * (width // 4), dense)
        self.head = nn.Linear(dense, blueprint.num_classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, channels, height, width) to logits (batch, classes)."""
        x = channels_last_on_cpu(self.conv1(x))
        # ReLU commutes with the maximum, and touches a quarter of the entries after it.
        x = F.relu(F.max_pool2d(x, 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return cast("Tensor", self.head(F.relu(self.dense(x.flatten(1)))))
