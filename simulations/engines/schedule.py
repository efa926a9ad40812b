"""Which clients go to which worker, in chunks: the costliest first, the tail in small pieces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# A chunk is this share of what is left for each worker: later chunks are smaller, so that idle
# workers find something to pull until the end.
CHUNK_SHARE = 0.5
# Sending a chunk costs about a millisecond: not for less than this, while every worker has some.
MIN_CHUNK_SECONDS = 0.03


class ClientQueue:
    """Positions of a round's messages, given out in chunks of similar cost.

    Parameters
    ----------
    costs : mapping of int to float
        Expected seconds by position; equal where nothing is known.
    workers : int
        How many workers pull from the queue.
    """

    def __init__(self, costs: Mapping[int, float], workers: int) -> None:
        self._costs = costs
        self._workers = workers
        self._positions = sorted(costs, key=lambda position: (-costs[position], position))
        self._left = sum(costs.values())
        self._least = min(MIN_CHUNK_SECONDS, self._left / workers)

    def __len__(self) -> int:
        return len(self._positions)

    def take(self) -> list[int]:
        """Take the next chunk, the costliest clients that are left; empty when none are."""
        share = max(self._left * CHUNK_SHARE / self._workers, self._least)
        taken = 0.0
        count = 0
        for position in self._positions:
            if count and taken + 0.5 * self._costs[position] > share:
                break
            taken += self._costs[position]
            count += 1
        chunk, self._positions = self._positions[:count], self._positions[count:]
        self._left = max(self._left - taken, 0.0)
        return chunk

    def put_back(self, positions: Iterable[int]) -> None:
        """Return clients whose worker died to the front of the queue."""
        positions = list(positions)
        self._left += sum(self._costs[position] for position in positions)
        self._positions = positions + self._positions


def expected_costs(node_ids: Iterable[int], seconds: Mapping[int, float]) -> dict[int, float]:
    """Guess each call's cost by the seconds of the client's last call, else by their mean."""
    known = sum(seconds.values()) / len(seconds) if seconds else 1.0
    return {
        position: max(seconds.get(node_id, known), 1e-6)
        for position, node_id in enumerate(node_ids)
    }
