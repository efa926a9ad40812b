"""The seam between a cell's run and what is exchanged in it."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedcompress.links import Uplink
from simulations.cell import Cell
from simulations.exchanges.kept_models import trained_model
from simulations.exchanges.registry import EXCHANGES
from simulations.materials import Materials
from simulations.model_record import model_record
from simulations.training import LocalResult, TrainingOptions, TrainingPath, choose_path


@final
@dataclass(frozen=True, eq=False)
class Told:
    """What a client is told in a round.

    Attributes
    ----------
    arrays : ArrayRecord
        What the server sent, decompressed.
    key : str
        Under which name it stood in the message, and stands in the reply.
    client : int
        Partition id.
    round : int
        From 1.
    group : str
        Of the clients that are sent arrays of one layout; empty where all are.
    options : TrainingOptions
        How to train in this round.
    config : ConfigRecord
        What else the server's strategy says.
    """

    arrays: ArrayRecord
    key: str
    client: int
    round: int
    group: str
    options: TrainingOptions
    config: ConfigRecord


@final
@dataclass(frozen=True, eq=False)
class Trained:
    """What a client sends back.

    Attributes
    ----------
    arrays : ArrayRecord
        Of the layout of those that it was sent.
    result : LocalResult
        What its training did.
    metrics : mapping of str to float
        Further numbers, which the server's rule averages.
    """

    arrays: ArrayRecord
    result: LocalResult
    metrics: Mapping[str, float] = field(default_factory=dict)


class Exchange(ABC):
    """What the server and the clients of a cell exchange, and how a client trains on it.

    Both ends build one from the same cell. A client's end keeps nothing between calls but in the
    arrays and in `Context.state`, so that any worker may make the next call. The server's end
    keeps nothing that its strategy's `state_dict` does not give.

    Parameters
    ----------
    cell : Cell
        What runs.
    materials : Materials
        On which data.
    """

    weighted_by: ClassVar[str] = "num-examples"
    """The metric of a reply by which the server's rule weighs it."""

    paths: ClassVar[frozenset[TrainingPath]] = frozenset({"eager", "compiled"})
    """The programs that can train here; "cohort" needs `train_together`."""

    distils: ClassVar[bool] = False
    """Whether what clients send are models that `Distilled` can learn from."""

    distils_itself: ClassVar[bool] = False
    """Whether `strategy` distils where the cell says so, in place of `Distilled`."""

    def __init__(self, cell: Cell, materials: Materials) -> None:
        self.cell = cell
        self.materials = materials

    @abstractmethod
    def start(self) -> ArrayRecord:
        """Give the arrays before round 1."""

    @abstractmethod
    def model_of(self, arrays: ArrayRecord) -> nn.Module:
        """Give the model that is tested, saved and exported; the next call may change it."""

    def parts_of(self, arrays: ArrayRecord) -> Mapping[str, nn.Module]:
        """Give the models that are tested beside it, by name."""
        return {}

    @abstractmethod
    def train(self, told: Told, context: Context) -> Trained:
        """Do a client's work of a round."""

    def train_together(
        self, told: Sequence[Told], contexts: Sequence[Context]
    ) -> Iterator[Trained]:
        """Do the work of clients that were sent the same in one program, in their order.

        Raises
        ------
        ValueError
            If this exchange has no such program; then no context has changed.
        """
        raise ValueError(f"the exchange {type(self).__name__} trains clients one by one")

    def strategy(self, inner: Strategy) -> Strategy:
        """Wrap the server's rule, inside of compression."""
        return inner

    def uplink(self) -> Uplink | None:
        """Say how clients compress what they send; asked for once the strategy is built."""
        return self.cell.strategy.uplink_spec

    def data_facts(self) -> dict[str, str]:
        """Fingerprint what every worker must have alike, each by a name that says what it is."""
        return self.materials.facts()

    def facts(self, arrays: ArrayRecord) -> dict[str, Any]:
        """Give what ``result.json`` is to say beside what it says of every cell."""
        return {}

    def dense_bytes(self) -> int:
        """Give the payload bytes of a client's whole model as Flower sends it uncompressed."""
        return sum(len(array.data) for array in model_record(self.new_model()).values())

    def new_model(self) -> nn.Module:
        """Build the cell's model as clients train it, its weights drawn from the seed."""
        return trained_model(self.cell.model, self.materials, self.cell.seed)

    def path(self) -> TrainingPath:
        """Name the program that trains."""
        model = self.new_model()
        device = torch.device(self.cell.device)
        chosen = choose_path(self.cell.training.path, model, self.materials.data, device)
        return chosen if chosen in self.paths else "eager"


def build_exchange(cell: Cell, materials: Materials) -> Exchange:
    """Build what a cell's strategy names, for the server or for a client.

    Raises
    ------
    ConfigError
        If its settings cannot work on these data.
    """
    return exchange_kind(cell)(cell, materials)


def exchange_kind(cell: Cell) -> type[Exchange]:
    """Find the class of a cell's exchange."""
    entry = EXCHANGES[cell.strategy.exchange_name]
    kind: type[Exchange] = getattr(importlib.import_module(entry.module), entry.kind)
    return kind
