"""Which clients go to which worker: neighbouring blocks, balanced by their expected cost.

The messages of a round are divided into blocks of neighbours by their number alone, whatever
workers there are. Each worker has a range of blocks; it is sent most of it at once and the last
part block by block, and one that has none left takes from the end of the longest range.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

# What a worker is sent at first of its range: all but a tenth where costs are known.
FIRST_SHARE = 0.9
FIRST_SHARE_UNKNOWN = 0.5
# A range more costs both sides some half a millisecond: what is left is not divided below this.
LEAST_SECONDS = 0.002


class RangeQueue:
    """A round's blocks, given out to workers.

    Parameters
    ----------
    costs : sequence of float
        Expected cost of each message by position, in any unit.
    size : int
        Messages of a block.
    workers : iterable of int
        Who gets a range at first; others may take from theirs.
    first_share : float
        The part of its range that a worker is sent at once.
    least : float
        Cost of what is not worth the way to a worker by itself: it goes with what is before it.
    """

    def __init__(
        self,
        costs: Sequence[float],
        size: int,
        workers: Iterable[int],
        first_share: float,
        least: float = 0.0,
    ) -> None:
        self._blocks = [
            range(start, min(start + size, len(costs))) for start in range(0, len(costs), size)
        ]
        self._before = [0.0, *accumulate(sum(costs[p] for p in block) for block in self._blocks)]
        workers = list(workers) or [-1]  # whoever comes takes from it
        self._first_share = first_share
        self._least = least
        self._ranges: dict[int, tuple[int, int]] = {}
        self._given: set[int] = set()
        self._again: deque[list[int]] = deque()
        low = 0
        for done, worker in enumerate(workers, start=1):
            high = self._nearest(self._before[-1] * done / len(workers), low)
            self._ranges[worker] = (low, high)
            low = high

    def __bool__(self) -> bool:
        return bool(self._again) or any(low < high for low, high in self._ranges.values())

    def take(self, worker: int) -> list[int]:
        """Take the positions that a worker shall call next; empty when none are left."""
        if self._again:
            return self._again.popleft()
        low, high = self._ranges.get(worker, (0, 0))
        if low < high:
            first = worker not in self._given
            share = self._cost(low, high) * self._first_share if first else 0.0
            end = max(self._nearest(self._before[low] + share, low), low + 1)
            if self._cost(end, high) < self._least:
                end = high
            self._given.add(worker)
            self._ranges[worker] = (end, high)
            return list(range(self._blocks[low].start, self._blocks[end - 1].stop))
        longest = max(self._ranges, key=lambda one: self._cost(*self._ranges[one]), default=None)
        if longest is None or self._ranges[longest][0] == self._ranges[longest][1]:
            return []
        low, high = self._ranges[longest]
        self._ranges[longest] = (low, high - 1)
        return list(self._blocks[high - 1])

    def are_whole_blocks(self, positions: Iterable[int]) -> bool:
        """Whether these positions are all those of the blocks that they are in."""
        counts = Counter(self.block_of(position) for position in positions)
        return all(count == len(self._blocks[block]) for block, count in counts.items())

    def put_back(self, positions: Iterable[int]) -> None:
        """Return the clients of a worker that died, each block by itself: one may be the cause."""
        by_block: dict[int, list[int]] = {}
        for position in positions:
            by_block.setdefault(self.block_of(position), []).append(position)
        self._again.extend(by_block.values())

    def put_back_alone(self, positions: Iterable[int]) -> None:
        """Return clients that run one by one from now on."""
        self._again.extend([position] for position in positions)

    def block_of(self, position: int) -> int:
        """Return the number of the block that a position is in."""
        return position // len(self._blocks[0])

    def _cost(self, low: int, high: int) -> float:
        return self._before[high] - self._before[low]

    def _nearest(self, wanted: float, low: int) -> int:
        """Find the end of the blocks from `low` whose cost up to there is nearest to `wanted`."""
        end = low
        while (
            end < len(self._blocks) and self._before[end + 1] - wanted <= wanted - self._before[end]
        ):
            end += 1
        return end


class CostModel:
    """Seconds a client takes: a line over its size, else those of its last call.

    The sums of a least-squares fit are kept over all calls, so a guess costs the same after a
    thousand rounds as after one.
    """

    def __init__(self) -> None:
        self._sizes: Callable[[int], float] | None = None
        self.clear()

    def clear(self, sizes: Callable[[int], float] | None = None) -> None:
        """Forget every call; `sizes` gives a client's size (its number of samples) by node id."""
        self._sizes = sizes
        self._count = self._seconds = self._size = self._squares = self._products = 0.0

    @property
    def knows(self) -> bool:
        """Whether any call was seen, or sizes are known."""
        return self._sizes is not None or self._count > 0

    @property
    def in_seconds(self) -> bool:
        """Whether `costs` gives seconds, which it does once a call was seen."""
        return self._count > 0

    def add(self, node_id: int, seconds: float) -> None:
        """Learn from one call."""
        size = 0.0 if self._sizes is None else self._sizes(node_id)
        self._count += 1
        self._seconds += seconds
        self._size += size
        self._squares += size * size
        self._products += size * seconds

    def costs(self, node_ids: Sequence[int], last: Mapping[int, float]) -> list[float]:
        """Guess seconds by position; where no call was seen yet, in another unit."""
        if self._sizes is not None:
            base, slope = self._line()
            return [max(base + slope * self._sizes(node_id), 1e-6) for node_id in node_ids]
        mean = self._seconds / self._count if self._count else 1.0
        return [max(last.get(node_id, mean), 1e-6) for node_id in node_ids]

    def _line(self) -> tuple[float, float]:
        if not self._count:
            return 1.0, 1.0  # a call costs something, however few its samples are
        mean_size, mean = self._size / self._count, self._seconds / self._count
        variance = self._squares / self._count - mean_size**2
        if variance <= 1e-9 * max(mean_size**2, 1.0):
            return mean, 0.0
        slope = max((self._products / self._count - mean_size * mean) / variance, 0.0)
        return max(mean - slope * mean_size, 0.0), slope
