"""What a model of PyTorch computes: multiply-adds."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(model: nn.Module, row: Tensor) -> int:
    """Count multiplications of one weight or activation by another for one row.

    Counted where they happen, in matrix products and convolutions, so that attention and
    recurrent layers count as they are computed. Biases, normalisation and non-linear functions
    do not count, zeros do, and so does the padding of convolutions.

    Parameters
    ----------
    model : torch.nn.Module
        On a CPU, in evaluation mode.
    row : torch.Tensor
        A batch of one row.
    """
    # Fused kernels of recurrent layers and attention hide what they multiply from the counter.
    with (
        torch.no_grad(),
        warnings.catch_warnings(action="ignore"),  # of a GPU's settings, by the next line
        torch.backends.mkldnn.flags(enabled=False),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(row)
    return int(counter.get_total_flops()) // 2
