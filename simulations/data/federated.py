"""What a simulation knows of a data set."""

from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]
Task = Literal["image", "characters"]


@final
@dataclass(frozen=True)
class FederatedData:
    """A data set as arrays, before it is divided among clients.

    All arrays are read-only, and memory-mapped where they come from the cache, so that any
    number of processes on a machine share one copy.

    Attributes
    ----------
    name : str
        Name of the data set.
    task : {"image", "characters"}
        Classify images, or predict the next character.
    num_classes : int
        Number of classes; size of the vocabulary for characters.
    train_x, test_x : numpy.ndarray
        uint8 pixels of shape (n, channels, height, width), or token ids of shape
        (n, window), uint8 for up to 256 different characters, else int64.
    train_y, test_y : numpy.ndarray
        Class or next token, int64, shape (n,).
    natural_ids : numpy.ndarray or None
        Natural client of each training sample, str, shape (n,); None where there is none.
    fingerprint : str
        XXH3 hash (128 bits, hexadecimal) of the arrays' content.
    vocabulary : str
        The characters in token order; empty for images.
    pixel_mean, pixel_std : tuple of float
        Mean and standard deviation of each channel of the training images, for pixels from
        0 to 1; empty for characters.
    """

    name: str
    task: Task
    num_classes: int
    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array
    natural_ids: Array | None
    fingerprint: str
    vocabulary: str = ""
    pixel_mean: tuple[float, ...] = ()
    pixel_std: tuple[float, ...] = ()

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (channels, height, width), or (window,)."""
        return tuple(int(size) for size in self.train_x.shape[1:])

    def inputs(self, x: Array | Tensor) -> Tensor:
        """Turn a batch of rows into what the models take.

        Parameters
        ----------
        x : numpy.ndarray or torch.Tensor
            Rows of `train_x` or `test_x`, on any device.

        Returns
        -------
        torch.Tensor
            Pixels as float32, scaled to mean 0 and variance 1 over the training images of
            each channel; tokens as int64. Same shape and device as ``x``.
        """
        if isinstance(x, np.ndarray):
            x = torch.from_numpy(x if x.flags.writeable else x.copy())
        if self.task == "characters":
            return x.long()
        scale = [1 / (255 * std) for std in self.pixel_std]
        shift = [-mean / std for mean, std in zip(self.pixel_mean, self.pixel_std, strict=True)]
        per_channel = torch.tensor([scale, shift], device=x.device)[:, :, None, None]
        return x.to(torch.float32).mul_(per_channel[0]).add_(per_channel[1])
