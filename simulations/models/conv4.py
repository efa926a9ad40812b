"""The convolutional network of HeteroFL."""

from typing import cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simulations.models.blueprint import Blueprint

_SMALLEST_IMAGE = 8
_CHANNELS = (64, 128, 256, 512)


@final
class Conv4(nn.Module):
    """Four normalised convolutions of 3 × 3 with max-pooling between, and one dense layer.

    After Diao et al. (2021): 64, 128, 256 and 512 channels, batch normalisation, ReLU, and the
    mean over the image; 1,556,874 parameters on 28 × 28 pixels and 10 classes, and with
    ``width`` 1/2, 1/4, 1/8 and 1/16 their models b, c, d and e.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        channels, _, _ = blueprint.check_image("conv4", _SMALLEST_IMAGE)
        sizes = [channels, *(blueprint.scaled(size) for size in _CHANNELS)]
        self.convs = nn.ModuleList(
            nn.Conv2d(sizes[i], sizes[i + 1], 3, padding=1) for i in range(len(_CHANNELS))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in sizes[1:])
        self.head = nn.Linear(sizes[-1], blueprint.num_classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, channels, height, width) to logits (batch, classes)."""
        x = x.contiguous(memory_format=torch.channels_last)
        for place, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            if place:
                x = F.max_pool2d(x, 2)
            x = F.relu(norm(conv(x)))
        return cast("Tensor", self.head(x.mean((2, 3))))
