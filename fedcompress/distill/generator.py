"""A small network that turns random numbers into inputs of a shape."""

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

_CHANNELS = 32
_SHRINK = 4  # factor between the first map and the image, on each side


def build_generator(latent: int, shape: Sequence[int], rng: np.random.Generator) -> nn.Module:
    """Build a generator, its weights drawn from ``rng``.

    Parameters
    ----------
    latent : int
        Numbers that it takes for each row.
    shape : sequence of int
        Of one row: (channels, height, width) for images, anything else is made by dense layers.
    rng : numpy.random.Generator
        Draws the weights; torch's own randomness is left alone.

    Returns
    -------
    nn.Module
        Maps (rows, latent) to (rows, *shape); mean 0 and variance 1 over a batch, of each
        channel of images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        if len(shape) == 3:
            return _ImageGenerator(latent, (shape[0], shape[1], shape[2]))
        return _RowGenerator(latent, tuple(shape))


@final
class _ImageGenerator(nn.Module):
    """Two enlargements, each followed by a convolution (after Chen et al., 2019)."""

    def __init__(self, latent: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        self._sizes = [
            (-(-height // _SHRINK), -(-width // _SHRINK)),
            (-(-height // 2), -(-width // 2)),
            (height, width),
        ]
        first = _CHANNELS * self._sizes[0][0] * self._sizes[0][1]
        self.dense = nn.Linear(latent, first)
        self.norm = nn.BatchNorm2d(_CHANNELS)
        self.conv1 = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(_CHANNELS)
        self.conv2 = nn.Conv2d(_CHANNELS, channels, 3, padding=1)
        self.scale = nn.BatchNorm2d(channels, affine=False)

    def forward(self, seeds: Tensor) -> Tensor:
        """Map (rows, latent) to images (rows, channels, height, width)."""
        x = self.norm(self.dense(seeds).unflatten(1, (_CHANNELS, *self._sizes[0])))
        x = functional.interpolate(x, size=self._sizes[1])
        x = functional.leaky_relu(self.norm1(self.conv1(x)), 0.2)
        scaled: Tensor = self.scale(self.conv2(functional.interpolate(x, size=self._sizes[2])))
        return scaled


@final
class _RowGenerator(nn.Module):
    """Two dense layers."""

    def __init__(self, latent: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self._shape = shape
        self.dense1 = nn.Linear(latent, 128)
        self.dense2 = nn.Linear(128, int(np.prod(shape)))
        self.scale = nn.BatchNorm1d(1, affine=False)

    def forward(self, seeds: Tensor) -> Tensor:
        """Map (rows, latent) to (rows, *shape)."""
        x = self.dense2(functional.leaky_relu(self.dense1(seeds), 0.2))
        scaled: Tensor = self.scale(x.unsqueeze(1)).squeeze(1)
        return scaled.reshape(len(seeds), *self._shape)
