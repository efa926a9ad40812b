"""Batch normalisation without statistics of its own (HeteroFL; Diao et al., 2021)."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedcompress.errors import ConfigError


def drop_statistics(model: nn.Module) -> None:
    """Let a model normalise by each batch's own statistics, in tests too, and keep none.

    Its state then holds no running statistics, so that they are neither sent nor averaged.

    Raises
    ------
    ConfigError
        If the model has no batch normalisation.
    """
    for norm in _norms(model):
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None


def estimate_statistics(model: nn.Module, inputs: Tensor, *, batch_size: int = 500) -> None:
    """Give a model, whose statistics may have been dropped, those of its layers on some inputs.

    They are means over the batches, each counted alike. The model is as one newly built of the
    same settings is, ready for evaluation.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place.
    inputs : torch.Tensor
        Shape (rows, ...), as the model takes them; at least one row.
    batch_size : int
        Rows a batch.

    Raises
    ------
    ConfigError
        If the model has no batch normalisation, or there are no rows.
    """
    norms = _norms(model)
    if len(inputs) < 1:
        raise ConfigError("proxy data: statistics are estimated on at least 1 row, got none")
    device = next(model.parameters()).device
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.track_running_stats = True
        norm.running_mean = torch.zeros(norm.num_features, device=device)
        norm.running_var = torch.ones(norm.num_features, device=device)
        norm.num_batches_tracked = torch.tensor(0, device=device)
        norm.momentum = None  # a plain mean over the batches
    model.train()
    with torch.no_grad():
        for batch in torch.split(inputs, batch_size):
            model(batch.to(device))
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _norms(model: nn.Module) -> list[_BatchNorm]:
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        raise ConfigError(
            f"model.norm_statistics: {type(model).__name__} has no batch normalisation; leave it "
            '"running", or use conv4 or resnet'
        )
    return norms
