"""Which kind of client each client is: as many of each as their shares say, drawn by the seed."""

from collections.abc import Sequence
from typing import final

import numpy as np

from fedcompress import rng_for


@final
class Assigned:
    """Deals kinds out to clients, the same on every engine.

    Parameters
    ----------
    kinds : sequence of str
        Names of the kinds.
    shares : sequence of float
        Of the clients, for each kind; only their ratios count.
    clients : int
        How many there are.
    seed : int
        Keys the draw.
    purpose : str
        What the kinds are for; keys the draw, too.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        shares: Sequence[float],
        clients: int,
        *,
        seed: int,
        purpose: str,
    ) -> None:
        self._kinds = list(kinds)
        self._shares = np.cumsum(shares) / np.sum(shares)
        self._seed = seed
        self._purpose = purpose
        ends = np.rint(self._shares * clients).astype(int)
        dealt = np.searchsorted(ends, np.arange(clients), side="right")
        self._of_client = rng_for(seed, client="server", purpose=purpose).permutation(dealt)

    def of_node(self, node_id: int) -> str:
        """Give the kind of a node.

        Engines of ours number their nodes by their clients, from 1. Elsewhere a node's number says
        nothing of its client, and each draws its kind by itself.
        """
        if 1 <= node_id <= len(self._of_client):
            return self._kinds[int(self._of_client[node_id - 1])]
        return self.drawn(node_id, 0)

    def drawn(self, node_id: int, server_round: int) -> str:
        """Draw the kind of a node for one round."""
        drawn = rng_for(self._seed, round=server_round, client=node_id, purpose=self._purpose)
        place = int(np.searchsorted(self._shares, drawn.random(), side="right"))
        return self._kinds[min(place, len(self._kinds) - 1)]

    def count(self, kind: str) -> int:
        """Count the clients of a kind."""
        return int((self._of_client == self._kinds.index(kind)).sum())
