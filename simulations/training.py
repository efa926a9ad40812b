"""Local training of one client, and evaluation."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcompress.errors import ConfigError
from simulations.data import FederatedData

Array = np.ndarray[Any, np.dtype[Any]]
OptimizerName = Literal["sgd", "adam", "adamw"]
_Step = Callable[[Sequence[Tensor]], None]
# Rows made float at a time: enough for the conversion to cost nothing, few enough for the cache.
_ROWS_AT_ONCE = 512
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


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


@final
@dataclass(frozen=True)
class Evaluation:
    """Share of right answers in [0, 1], mean cross-entropy in nats, samples seen."""

    accuracy: float
    loss: float
    num_examples: int


def train_locally(
    model: nn.Module,
    data: FederatedData,
    rows: Array,
    options: TrainingOptions,
    rng: np.random.Generator,
    device: str | torch.device = "cpu",
) -> LocalResult:
    """Train a model in place on one client's samples, minimising cross-entropy.

    On one thread the result is bit for bit a function of the model, the rows and ``rng``.

    Parameters
    ----------
    model : torch.nn.Module
        The global model; moved to ``device`` and changed in place.
    data : FederatedData
        Data set that the rows belong to.
    rows : numpy.ndarray
        Rows of ``data.train_x`` that the client owns, any integer dtype, shape (n,).
    options : TrainingOptions
        How to train.
    rng : numpy.random.Generator
        Draws the order of the samples in each epoch.
    device : str or torch.device
        Where to train.

    Returns
    -------
    LocalResult
        With no rows: loss 0, no examples, no steps, and the model as it was.
    """
    if len(rows) == 0:
        return LocalResult(0.0, 0, 0)
    model.to(device).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    anchors = [p.detach().clone() for p in parameters] if options.proximal_mu else []
    step = _OPTIMIZERS[options.optimizer](parameters, options)
    losses: list[Tensor] = []
    for _ in range(options.local_epochs):
        order = rng.permutation(rows)
        for x, y in _batches(data, order, options.batch_size, device):
            loss = F.cross_entropy(_logits(model, x), y)
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for gradient, parameter, anchor in zip(
                    gradients, parameters, anchors, strict=False
                ):
                    gradient.add_(parameter - anchor, alpha=options.proximal_mu)
                step(gradients)
            losses.append(loss.detach())
    return LocalResult(float(torch.stack(losses).mean()), len(rows), len(losses))


def evaluate(
    model: nn.Module,
    data_x: Array,
    data_y: Array,
    data: FederatedData,
    batch_size: int = 128,
    device: str | torch.device = "cpu",
) -> Evaluation:
    """Measure accuracy and loss of a model, leaving its state and mode as they were.

    Parameters
    ----------
    model : torch.nn.Module
        The model; moved to ``device``.
    data_x, data_y : numpy.ndarray
        Samples as in ``data.test_x`` and their classes, int64.
    data : FederatedData
        Data set that the samples belong to.
    batch_size : int
        Samples per forward pass; more than some hundred images leave a CPU's cache.
    device : str or torch.device
        Where to evaluate.

    Returns
    -------
    Evaluation
        NaN accuracy and loss when there are no samples.
    """
    n = len(data_y)
    if n == 0:
        return Evaluation(float("nan"), float("nan"), 0)
    was_training = model.training
    model.to(device).eval()
    right, loss = 0, 0.0
    with torch.inference_mode():
        for start in range(0, n, batch_size):
            part = slice(start, start + batch_size)
            y = torch.from_numpy(np.array(data_y[part])).to(device)
            logits = model(data.inputs(torch.from_numpy(np.array(data_x[part])).to(device)))
            right += int((logits.argmax(1) == y).sum())
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
    model.train(was_training)
    return Evaluation(right / n, loss / n, n)


def _batches(
    data: FederatedData, order: Array, batch_size: int, device: str | torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Gather the rows once, as stored, and make them float some batches at a time."""
    x = torch.from_numpy(data.train_x[order]).to(device)
    y = torch.from_numpy(data.train_y[order]).to(device)
    at_once = max(1, _ROWS_AT_ONCE // batch_size) * batch_size
    for start in range(0, len(order), at_once):
        inputs, targets = data.inputs(x[start : start + at_once]), y[start : start + at_once]
        for first in range(0, len(targets), batch_size):
            yield inputs[first : first + batch_size], targets[first : first + batch_size]


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    if len(x) > 1:
        logits: Tensor = model(x)
        return logits
    # One sample has no statistics of a batch, so normalisation takes the running ones.
    norms = [m for m in model.modules() if isinstance(m, _BATCH_NORMS) and m.training]
    for norm in norms:
        norm.eval()
    logits = model(x)
    for norm in norms:
        norm.train()
    return logits


def _sgd(parameters: Sequence[Tensor], options: TrainingOptions) -> _Step:
    # By hand: torch.optim costs a small dense model a fifth of each step.
    velocities = [torch.zeros_like(p) for p in parameters] if options.momentum else []

    def step(gradients: Sequence[Tensor]) -> None:
        if options.weight_decay:
            for gradient, parameter in zip(gradients, parameters, strict=True):
                gradient.add_(parameter, alpha=options.weight_decay)
        for velocity, gradient in zip(velocities, gradients, strict=False):
            velocity.mul_(options.momentum).add_(gradient)
        for parameter, change in zip(parameters, velocities or gradients, strict=True):
            parameter.sub_(change, alpha=options.learning_rate)

    return step


def _adam(parameters: Sequence[Tensor], options: TrainingOptions) -> _Step:
    make = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
    optimizer = make(
        parameters, lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
    )

    def step(gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()

    return step


_OPTIMIZERS: dict[OptimizerName, Callable[[Sequence[Tensor], TrainingOptions], _Step]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adam,
}


def _require(holds: bool, name: str, range_text: str, value: object) -> None:
    if not holds:
        raise ConfigError(f"training: {name} must be {range_text}, got {value!r}")
