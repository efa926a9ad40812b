"""Multilayer perceptron."""

import itertools
import math
from typing import cast, final

from torch import Tensor, nn

from simulations.models.blueprint import Blueprint


@final
class MLP(nn.Module):
    """Dense layers with ReLU between them.

    With ``hidden=(200, 200)`` on 28 × 28 pixels and 10 classes it has the 199,210 parameters
    of McMahan et al. (2017), "2NN".
    """

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        sizes = [math.prod(blueprint.data_shape), *map(blueprint.scaled, blueprint.hidden)]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        layers.append(nn.Linear(sizes[-1], blueprint.num_classes))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, ...) float32 to logits (batch, classes)."""
        return cast("Tensor", self.layers(x))
