"""How a client trains, and what came of it."""

from dataclasses import dataclass
from typing import Literal, final, get_args

from fedcompress.errors import ConfigError

OptimizerName = Literal["sgd", "adam", "adamw"]


@final
@dataclass(frozen=True)
class TrainingOptions:
    """How a client trains.

    Attributes
    ----------
    optimizer : {"sgd", "adam", "adamw"}
        Its state starts anew in every round.
    learning_rate : float
        Step size, above 0.
    momentum : float
        Momentum of ``sgd`` (not Nesterov's), in [0, 1).
    weight_decay : float
        L2 penalty (``adamw``: decoupled, Loshchilov & Hutter, 2019), at least 0.
    local_epochs : int
        Passes over the client's samples in one round.
    batch_size : int
        Samples per step; the last batch of an epoch may hold fewer.
    proximal_mu : float
        Pull towards the global model, ``mu / 2 * ‖w - w_global‖²`` (FedProx, Li et al.,
        2020), at least 0.
    mask_loss : bool
        Whether the logits of classes that the client has no sample of count as 0 in its loss, so
        that what others have learnt of those classes is not unlearnt (HeteroFL; Diao et al., 2021).

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0
    local_epochs: int = 1
    batch_size: int = 32
    proximal_mu: float = 0.0
    mask_loss: bool = False

    def __post_init__(self) -> None:
        _require(
            self.optimizer in get_args(OptimizerName),
            "optimizer",
            f"one of {', '.join(get_args(OptimizerName))}",
            self.optimizer,
        )
        _require(self.learning_rate > 0, "learning_rate", "above 0", self.learning_rate)
        _require(0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)
        _require(
            self.optimizer == "sgd" or self.momentum == 0,
            "momentum",
            f"0 with optimizer {self.optimizer}",
            self.momentum,
        )
        _require(self.weight_decay >= 0, "weight_decay", "at least 0", self.weight_decay)
        _require(self.local_epochs >= 1, "local_epochs", "at least 1", self.local_epochs)
        _require(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)
        _require(self.proximal_mu >= 0, "proximal_mu", "at least 0", self.proximal_mu)


@final
@dataclass(frozen=True)
class LocalResult:
    """What one client's training did: mean loss of its batches, samples owned, steps taken."""

    loss: float
    num_examples: int
    steps: int


def _require(holds: bool, name: str, range_text: str, value: object) -> None:
    if not holds:
        raise ConfigError(f"training: {name} must be {range_text}, got {value!r}")
