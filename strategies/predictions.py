"""What a model predicts of proxy rows, as it is sent, and as others follow it."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedcompress.distill import predict_logits
from fedcompress.errors import ConfigError

Scores = Literal["logits", "probabilities"]
_LEAST_PROBABILITY = 1e-6
"""What a class that nobody named counts in a target: a logarithm needs more than 0."""


def check_scores(where: str, scores: str, sharpen: float) -> None:
    """Refuse settings that cannot work.

    Raises
    ------
    ConfigError
        If the scores are of no such kind, `sharpen` is not in (0, 1], or logits are to be
        sharpened: each round would sharpen what the one before it sharpened.
    """
    if scores not in get_args(Scores):
        raise ConfigError(f"{where}: scores must be 'logits' or 'probabilities', got {scores!r}")
    if not 0 < sharpen <= 1:
        raise ConfigError(f"{where}: sharpen must be in (0, 1], got {sharpen!r}")
    if scores == "logits" and sharpen != 1:
        raise ConfigError(
            f"{where}: sharpen must be 1 where logits are sent, which each round would sharpen "
            f"again, got {sharpen!r}; send probabilities"
        )


def predict_scores(
    model: nn.Module, inputs: Tensor, scores: Scores, *, device: str = "cpu"
) -> Tensor:
    """Predict proxy rows.

    Parameters
    ----------
    model : nn.Module
        Gives logits.
    inputs : Tensor
        Shape ``(rows, ...)``.
    scores : {"logits", "probabilities"}
        What to give. Logits are centred in each row, to which softmax is blind.
    device : str
        Where to compute.

    Returns
    -------
    Tensor
        float32 on the CPU, shape ``(rows, classes)``.
    """
    logits = predict_logits(model, inputs, device=device)
    return centred(logits) if scores == "logits" else functional.softmax(logits, dim=-1)


def centred(logits: Tensor) -> Tensor:
    """Shift each row's logits to a mean of 0."""
    return logits - logits.mean(-1, keepdim=True)


def target_logits(mean: Tensor, scores: Scores, sharpen: float) -> Tensor:
    """Give the logits of what is to be followed, of the clients' mean scores.

    Parameters
    ----------
    mean : Tensor
        Shape ``(rows, classes)``; a lossy codec may have left probabilities a little below 0.
    scores : {"logits", "probabilities"}
        What was averaged.
    sharpen : float
        Temperature of the entropy reduction ``softmax(mean / sharpen)`` of mean probabilities
        (DS-FL; Itahara et al., 2021); 1 leaves the mean as it is.

    Returns
    -------
    Tensor
        Shape ``(rows, classes)``.
    """
    if scores == "logits":
        return mean
    if sharpen == 1:
        return torch.log(mean.clamp_min(_LEAST_PROBABILITY))
    return mean / sharpen
