"""A character LSTM that predicts the next character of a window."""

from typing import cast, final

from torch import Tensor, nn

from fedcompress.errors import ConfigError
from simulations.models.blueprint import Blueprint

_EMBEDDING_SIZE = 8


@final
class CharacterLSTM(nn.Module):
    """Embedding, LSTM layers, and a dense layer on the last state.

    After McMahan et al. (2017) and LEAF (Caldas et al., 2018): characters are embedded in 8
    dimensions, and only the character after the window is predicted. ``hidden`` gives one
    equal size per LSTM layer; theirs is ``(256, 256)``.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        sizes = [blueprint.scaled(size) for size in blueprint.hidden]
        if len(blueprint.data_shape) != 1:
            raise ConfigError(
                "model: lstm takes windows of characters, got samples of shape "
                f"{blueprint.data_shape}; use mlp, lenet, resnet or conv4"
            )
        if not sizes or len(set(sizes)) > 1:
            raise ConfigError(
                f"model: lstm needs hidden layers of one size, got {blueprint.hidden}; "
                "did you mean (200, 200)?"
            )
        self.embedding = nn.Embedding(blueprint.num_classes, _EMBEDDING_SIZE)
        self.lstm = nn.LSTM(_EMBEDDING_SIZE, sizes[0], num_layers=len(sizes), batch_first=True)
        self.head = nn.Linear(sizes[0], blueprint.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (batch, window) int64 to logits (batch, vocabulary)."""
        states, _ = self.lstm(self.embedding(x))
        return cast("Tensor", self.head(states[:, -1]))
