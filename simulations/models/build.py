"""Build a model by name."""

import difflib
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fedcompress.errors import ConfigError
from fedcompress.randomness import rng_for
from simulations.models.blueprint import Blueprint, Builder
from simulations.models.conv4 import Conv4
from simulations.models.lenet import LeNet
from simulations.models.lstm import CharacterLSTM
from simulations.models.mlp import MLP
from simulations.models.resnet import ResNet
from simulations.models.transformer import CharacterTransformer

MODELS: Mapping[str, Builder] = {
    "mlp": MLP,
    "lenet": LeNet,
    "resnet": ResNet,
    "conv4": Conv4,
    "lstm": CharacterLSTM,
    "transformer": CharacterTransformer,
}


def build_model(
    name: str,
    data_shape: tuple[int, ...],
    num_classes: int,
    *,
    seed: int,
    hidden: Sequence[int] = (200, 200),
    width: float = 1.0,
) -> nn.Module:
    """Build a model with weights drawn for ``seed``, leaving torch's own randomness untouched.

    Parameters
    ----------
    name : str
        A key of `MODELS`.
    data_shape : tuple of int
        Shape of one sample: (channels, height, width), or (window,) for characters.
    num_classes : int
        Number of classes, or size of the vocabulary.
    seed : int
        Seed of the initial weights; the same seed gives the same bits.
    hidden : sequence of int
        Sizes of the hidden layers of ``mlp`` and ``lstm``, and of ``transformer``'s blocks.
    width : float
        Factor on hidden sizes and channels.

    Raises
    ------
    ConfigError
        If the model is unknown, a size is not positive, or the data do not fit the model.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        mend = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(MODELS)}"
        raise ConfigError(f"model: there is no model {name!r}; {mend}")
    if not width > 0:
        raise ConfigError(f"model: width must be above 0, got {width}; did you mean 1.0?")
    if any(size < 1 for size in hidden):
        raise ConfigError(
            f"model: hidden sizes must be at least 1, got {tuple(hidden)}; did you mean (200, 200)?"
        )
    blueprint = Blueprint(tuple(data_shape), num_classes, tuple(hidden), width)
    # The layers draw from torch's default generator: borrowed here, put back after.
    with torch.random.fork_rng(devices=[]):
        draw = int(rng_for(seed, purpose="model").integers(2**63))
        torch.default_generator.manual_seed(draw)
        return MODELS[name](blueprint)
