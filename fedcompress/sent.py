"""What each node of a round was sent: the compressor that it is to use, and what it starts from.

Mostly all nodes are sent one model. A strategy may put other arrays into its messages: a slice of
the model, the arrays of one architecture among several, a model packed to the entries that are
left. A client's update is the difference to the arrays of its own message.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from fedcompress.compressor import Compressor
from fedcompress.errors import PayloadError


@final
@dataclass(frozen=True, eq=False)
class Sent:
    """What one node was sent in one round.

    Attributes
    ----------
    compressor : Compressor or None
        What it is to encode its update with; None where its arrays come dense.
    reference : Mapping[str, Tensor]
        Arrays of its message, to which its update is added.
    group : str
        Names the layout of these arrays; empty for the global model.
    """

    compressor: Compressor | None
    reference: Mapping[str, Tensor]
    group: str = ""


@final
class SentRound(Mapping[int, Sent]):
    """What every node of a round was sent, by node id, in the order of the messages.

    Parameters
    ----------
    sent : Mapping[int, Sent], optional
        What is known already.
    """

    def __init__(self, sent: Mapping[int, Sent] | None = None) -> None:
        self._sent: dict[int, Sent] = dict(sent or {})

    def note(self, node_id: int, sent: Sent) -> None:
        """Note what a node was sent."""
        self._sent[node_id] = sent

    def of(self, node_id: int) -> Sent:
        """Give what a node was sent.

        Raises
        ------
        PayloadError
            If it was not asked in this round.
        """
        sent = self._sent.get(node_id)
        if sent is None:
            raise PayloadError(f"reply of node {node_id}: it was not asked in this round")
        return sent

    @property
    def common(self) -> Mapping[str, Tensor] | None:
        """The one reference of all nodes; None where they differ, or nobody was asked."""
        references = {id(sent.reference): sent.reference for sent in self._sent.values()}
        return next(iter(references.values())) if len(references) == 1 else None

    def __getitem__(self, node_id: int) -> Sent:
        """Give what a node was sent."""
        return self._sent[node_id]

    def __iter__(self) -> Iterator[int]:
        """Walk the nodes in the order of their messages."""
        return iter(self._sent)

    def __len__(self) -> int:
        """Count the nodes."""
        return len(self._sent)
