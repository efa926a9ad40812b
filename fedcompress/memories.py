"""The server's memory of each client's payloads, for compressors that predict from them.

Every memory carries the round whose reply it was made of. The server tells a client that
round, so that a client whose last reply was lost, late or refused goes back to the state of
before, and one that holds neither starts anew.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

NO_ROUND = -1


@dataclass(eq=False)
class Memories:
    """The memory of every node whose payloads build on it: one model each, at most.

    Beyond ``limit_bytes`` `make_room` forgets the nodes that have not been heard for longest.
    """

    limit_bytes: int
    _rounds: dict[int, int] = field(default_factory=dict)
    _arrays: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # last heard stands last
    _groups: dict[int, str] = field(default_factory=dict)  # where it is not the global model's
    _bytes: int = 0
    _warned: bool = False

    def round_of(self, node_id: int, group: str = "") -> int:
        """Give the round whose reply a node's memory was made of, −1 if there is none.

        What was made of arrays of another group is none.
        """
        is_of_group = self._groups.get(node_id, "") == group
        return self._rounds.get(node_id, NO_ROUND) if is_of_group else NO_ROUND

    def of(self, node_id: int, group: str = "") -> Mapping[str, Tensor]:
        """Give a node's memory, empty if there is none."""
        return self._arrays.get(node_id, {}) if self._groups.get(node_id, "") == group else {}

    def keep(
        self, node_id: int, server_round: int, memory: Mapping[str, Tensor], group: str = ""
    ) -> None:
        """Note what the reply of this round leaves of a node, by arrays of a group."""
        self.forget(node_id)
        if group:
            self._groups[node_id] = group
        self._rounds[node_id] = server_round
        self._arrays[node_id] = dict(memory)
        self._bytes += _size(memory)

    def make_room(self) -> None:
        """Forget nodes down to ``limit_bytes``; between rounds, when no reply is awaited."""
        while self._bytes > self.limit_bytes and len(self._arrays) > 1:
            if not self._warned:
                logger.warning(
                    "the memory of %d clients takes %.0f MB; those not heard for longest start "
                    "anew. Raise memory_bytes if there is room",
                    *(len(self._arrays), self._bytes / 1e6),
                )
                self._warned = True
            self.forget(next(iter(self._arrays)))

    def forget(self, node_id: int) -> None:
        """Note that a node remembers something else; it starts anew the next time."""
        self._rounds.pop(node_id, None)
        self._groups.pop(node_id, None)
        self._bytes -= _size(self._arrays.pop(node_id, {}))

    def state_dict(self) -> dict[str, object]:
        """Give everything that a later run needs to go on from here."""
        return {
            str(node_id): {
                "round": self._rounds[node_id],
                **({"group": self._groups[node_id]} if node_id in self._groups else {}),
                "arrays": {name: x.cpu().numpy() for name, x in arrays.items()},
            }
            for node_id, arrays in self._arrays.items()
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take up what `state_dict` gave."""
        self._rounds, self._arrays, self._groups, self._bytes = {}, {}, {}, 0
        for node_id, kept in state.items():
            if not isinstance(kept, Mapping):
                raise TypeError(f"state: memory of node {node_id} is a {type(kept).__name__}")
            arrays = {name: torch.from_numpy(np.array(x)) for name, x in kept["arrays"].items()}
            self.keep(int(node_id), int(kept["round"]), arrays, str(kept.get("group", "")))


def _size(memory: Mapping[str, Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in memory.values())
