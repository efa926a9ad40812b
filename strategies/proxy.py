"""Proxy data: unlabelled inputs on which models are distilled."""

import torch
from torch import Tensor, nn

from fedcompress.distill import predict_logits
from fedcompress.errors import ConfigError


def check_proxy(model: nn.Module, proxy: Tensor, device: str) -> None:
    """Refuse proxy data that the model cannot take, by running it on two rows.

    Raises
    ------
    ConfigError
        Names what does not fit, and how to mend it.
    """
    if not isinstance(proxy, Tensor):
        raise ConfigError(
            f"Distilled: proxy must be a Tensor of unlabelled inputs, got {type(proxy).__name__}"
        )
    if proxy.ndim < 1 or len(proxy) < 2:
        raise ConfigError(
            f"Distilled: proxy needs at least 2 rows, got shape {tuple(proxy.shape)}; "
            "give more unlabelled inputs"
        )
    if proxy.is_floating_point() and not bool(torch.isfinite(proxy).all()):
        raise ConfigError("Distilled: proxy holds NaN or infinity; leave those rows out")
    _check_device(device)
    try:
        logits = predict_logits(model, proxy[:2], device=device)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ConfigError(
            f"Distilled: proxy rows of shape {tuple(proxy.shape[1:])} and dtype {proxy.dtype} do "
            f"not fit the model ({error}); give inputs as the model takes them"
        ) from error
    if logits.ndim < 2 or len(logits) != 2:
        raise ConfigError(
            f"Distilled: the model gives shape {tuple(logits.shape)} for 2 proxy rows; "
            "it must give logits of shape (rows, ..., classes)"
        )


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"Distilled: device {device!r} cannot be used ({reason}); use 'cpu' or another"
        ) from error
