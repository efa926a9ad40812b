"""What a model is built from."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from fedcompress.errors import ConfigError


@dataclass(frozen=True)
class Blueprint:
    """Shapes and sizes of a model.

    Attributes
    ----------
    data_shape : tuple of int
        Shape of one sample: (channels, height, width), or (window,) for characters.
    num_classes : int
        Number of classes, or size of the vocabulary.
    hidden : tuple of int
        Sizes of the hidden layers, where the model has such.
    width : float
        Factor on all hidden sizes and channels.
    """

    data_shape: tuple[int, ...]
    num_classes: int
    hidden: tuple[int, ...]
    width: float

    def scaled(self, size: int) -> int:
        """Multiply a size by the width, keeping at least one unit."""
        return max(1, round(size * self.width))

    def check_image(self, model: str, smallest: int) -> tuple[int, int, int]:
        """Give (channels, height, width); refuse data that are no images or too small."""
        if len(self.data_shape) != 3 or min(self.data_shape[1:]) < smallest:
            raise ConfigError(
                f"model: {model} takes images (channels, height, width) of at least {smallest} × "
                f"{smallest} pixels, got samples of shape {self.data_shape}; "
                f"use {'lstm' if len(self.data_shape) == 1 else 'mlp'}"
            )
        channels, height, width = self.data_shape
        return channels, height, width


Builder = Callable[[Blueprint], nn.Module]
