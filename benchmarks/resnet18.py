"""ResNet-18 for small images."""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F


class _Block(nn.Module):
    """Two normalised convolutions of 3 × 3 beside a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet18(channels_in: int = 1, classes: int = 10) -> nn.Module:
    """Build ResNet-18 (He et al., 2016) with a first convolution of 3 × 3 and no pooling.

    It has 11,172,810 parameters for grey images and ten classes; any image size does.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, 64, 3, 1, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
    ]
    before = 64
    for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [_Block(before, channels, stride), _Block(channels, channels, 1)]
        before = channels
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes)]
    return cast("nn.Module", nn.Sequential(*layers))
