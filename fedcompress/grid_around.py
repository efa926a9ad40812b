"""A Grid around another, which passes on what it does not change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run


class GridAround(Grid, ABC):
    """Any Grid, with something done to the messages that pass through it.

    Parameters
    ----------
    grid : Grid
        One of ours, another that is around one, or the one that Flower gives a ServerApp.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def set_run(self, run: Run) -> None:
        self.grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run that the wrapped grid serves."""
        return self.grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return self.grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self.grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        return self.grid.get_nodes()

    @abstractmethod
    def push_messages(self, messages: Iterable[Message]) -> list[str]: ...

    @abstractmethod
    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]: ...

    @abstractmethod
    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]: ...
