"""The compressed downlink of a run: one `Broadcast` of the model, and one for each other layout.

A client keeps one reference model only. So a node that is sent arrays of one group is forgotten
in all others, whether its reply arrives or not, and gets the whole arrays when it comes back.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import final

from torch import Tensor

from fedcompress.compressor import Compressor
from fedcompress.downlink import Broadcast

logger = logging.getLogger(__name__)

_MOST_GROUPS = 32  # each holds a reference model


@final
class Broadcasts:
    """One `Broadcast` for each group of nodes that are sent the same arrays.

    Parameters
    ----------
    compressor : Compressor
        Of the downlink.
    seed : int
        Seed of the run.
    remembers : bool
        Whether the compressor is to remember what broadcasts of the global model leave out: the
        next one is then what came of the decoded model. It never does so for other groups,
        whose arrays are made of a model that nothing was left out of.
    """

    def __init__(self, compressor: Compressor, seed: int, remembers: bool = True) -> None:
        self._compressor = compressor
        self._seed = seed
        self._model = Broadcast(compressor, seed, remembers=remembers)
        self._groups: dict[str, Broadcast] = {}  # advanced last stands last
        self._asked: dict[int, Broadcast] = {}  # by node id

    def advance(self, group: str, target: Mapping[str, Tensor], server_round: int) -> Broadcast:
        """Move the reference of a group, "" for the model, to ``target``; see `Broadcast`."""
        broadcast = self._model if not group else self._take(group)
        broadcast.advance_to(target, server_round)
        return broadcast

    def ask(self, node_id: int, broadcast: Broadcast) -> None:
        """Note that a node is sent a broadcast, after which it holds nothing of any other."""
        for other in self._all():
            if other is not broadcast:
                other.forget(node_id)
        self._asked[node_id] = broadcast

    def confirm(self, node_id: int) -> None:
        """Note that a node answered, so it holds what it was sent."""
        if node_id in self._asked:
            self._asked.pop(node_id).confirm(node_id)

    def forget(self, node_id: int) -> None:
        """Note that a node may have lost its copy; it is sent the whole arrays next."""
        for broadcast in self._all():
            broadcast.forget(node_id)

    def model_stays(self) -> None:
        """Note that the round gave no new model; see `Broadcast`."""
        self._model.model_stays()

    def state_dict(self) -> dict[str, object]:
        """Give everything that a later run needs to go on from here."""
        groups = {group: broadcast.state_dict() for group, broadcast in self._groups.items()}
        state = self._model.state_dict()
        return {**state, "groups": groups} if groups else state

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take up what `state_dict` gave."""
        groups = state.get("groups", {})
        if not isinstance(groups, Mapping):
            raise TypeError(f"state: groups is a {type(groups).__name__}, expected a mapping")
        self._model.load_state_dict(state)
        self._groups, self._asked = {}, {}
        for group, kept in groups.items():
            self._groups[str(group)] = self._new(str(group))
            self._groups[str(group)].load_state_dict(kept)

    def _take(self, group: str) -> Broadcast:
        broadcast = self._groups.pop(group, None) or self._new(group)
        self._groups[group] = broadcast
        if len(self._groups) > _MOST_GROUPS:
            oldest = next(iter(self._groups))
            del self._groups[oldest]
            logger.info("downlink: group %s is forgotten; its nodes get whole arrays next", oldest)
        return broadcast

    def _new(self, group: str) -> Broadcast:
        return Broadcast(self._compressor, self._seed, group=group, remembers=False)

    def _all(self) -> Iterator[Broadcast]:
        yield self._model
        yield from self._groups.values()
