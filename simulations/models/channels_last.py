"""The order of memory in which a CPU convolves and pools fastest."""

import torch
from torch import Tensor


def channels_last_on_cpu(x: Tensor) -> Tensor:
    """Give images (batch, channels, height, width) channels innermost; as they are on a GPU."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x
