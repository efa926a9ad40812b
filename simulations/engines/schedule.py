"""Which clients go to which worker: blocks of neighbours, balanced by their expected cost.

The messages of a round are divided into blocks of neighbours by their number alone, whatever
workers there are. Each worker has a share of the blocks, mostly neighbours too: it is sent most of
it at once and the last part block by block, and one that has none left takes from the end of the
largest share.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

# What a worker is sent at first of its share: all but a tenth where costs are known.
FIRST_SHARE = 0.9
FIRST_SHARE_UNKNOWN = 0.5
# A range more costs both sides some half a millisecond: what is left is not divided below this.
LEAST_SECONDS = 0.002
# What a sum more costs, to send and to add, and what each entry of its model does.
APART_SECONDS = 0.0001
ENTRY_SECONDS = 2.5e-9
_LOOKED_AT = 16  # swaps whose sums are counted
_MOVABLE = 64  # blocks of a share that may be swapped, those beside the next one's
_KEPT = 0.99  # what an earlier call counts with each that follows


class RangeQueue:
    """A round's blocks, given out to workers.

    Parameters
    ----------
    costs : sequence of float
        Expected cost of each message by position, in any unit.
    size : int
        Messages of a block.
    workers : iterable of int
        Who gets a share at first; others may take from theirs.
    first_share : float
        The part of its share that a worker is sent at once.
    least : float
        Cost of what is not worth the way to a worker by itself: it goes with what is before it.
    apart : float, optional
        Cost of a sum more, which neighbours that are not together make; where it is given, blocks
        leave their neighbours if that balances the shares by more.
    """

    def __init__(
        self,
        costs: Sequence[float],
        size: int,
        workers: Iterable[int],
        first_share: float,
        least: float = 0.0,
        apart: float | None = None,
    ) -> None:
        self._blocks = [
            range(start, min(start + size, len(costs))) for start in range(0, len(costs), size)
        ]
        self._costs = [sum(costs[p] for p in block) for block in self._blocks]
        self._first_share = first_share
        self._least = least
        self._given: set[int] = set()
        self._again: deque[list[int]] = deque()
        workers = list(workers) or [-1]  # whoever comes takes from it
        shares = _neighbours(self._costs, len(workers))
        if apart is not None:
            for _ in workers[1:]:
                shares = _better_shares(shares, self._costs, apart)
        self._left = {worker: deque(share) for worker, share in zip(workers, shares, strict=True)}

    def __bool__(self) -> bool:
        return bool(self._again) or any(self._left.values())

    def take(self, worker: int) -> list[int]:
        """Take the positions that a worker shall call next; empty when none are left."""
        if self._again:
            return self._again.popleft()
        left = self._left.get(worker)
        if left:
            count = 1
            if worker not in self._given:
                self._given.add(worker)
                costs = [self._costs[block] for block in left]
                count = max(_nearest(costs, sum(costs) * self._first_share), 1)
            taken = [left.popleft() for _ in range(count)]
            if self._cost(left) < self._least:
                taken += left
                left.clear()
            return [position for block in taken for position in self._blocks[block]]
        longest = max(self._left.values(), key=self._cost, default=None)
        return list(self._blocks[longest.pop()]) if longest else []

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

    def _cost(self, blocks: Iterable[int]) -> float:
        return sum(self._costs[block] for block in blocks)


def _nearest(costs: Sequence[float], wanted: float) -> int:
    """Count the first costs whose sum is nearest to what is wanted."""
    sums = [0.0, *accumulate(costs)]
    end = 0
    while end < len(costs) and sums[end + 1] - wanted <= wanted - sums[end]:
        end += 1
    return end


def _neighbours(costs: Sequence[float], shares: int) -> list[list[int]]:
    """Divide blocks into shares of neighbours that cost about the same."""
    total, low, before = sum(costs), 0, 0.0
    found = []
    for done in range(1, shares + 1):
        high = low + _nearest(costs[low:], total * done / shares - before)
        found.append(list(range(low, high)))
        before += sum(costs[low:high])
        low = high
    found[-1] += range(low, len(costs))
    return found


def _better_shares(
    shares: list[list[int]], costs: Sequence[float], apart: float
) -> list[list[int]]:
    """Let the largest share give a block to the smallest, for another or for none, if that pays."""
    loads = [sum(costs[block] for block in share) for share in shares]
    most, fewest = loads.index(max(loads)), loads.index(min(loads))
    gap = loads[most] - loads[fewest]
    swaps = []
    first, second = sorted((most, fewest))
    movable = {first: shares[first][-_MOVABLE:], second: shares[second][:_MOVABLE]}
    for given in movable[most]:
        for taken in (None, *movable[fewest]):
            moved = costs[given] - (0.0 if taken is None else costs[taken])
            saved = min(moved, gap - moved)
            if saved > apart:
                swaps.append((saved, given, taken))
    swaps.sort(key=lambda swap: -swap[0])
    best, most_gained = shares, 0.0
    before = sum(map(_sums_of, shares))
    for saved, given, taken in swaps[:_LOOKED_AT]:
        back = [] if taken is None else [taken]
        changed = list(shares)
        changed[most] = sorted([b for b in shares[most] if b != given] + back)
        changed[fewest] = sorted([b for b in shares[fewest] if b != taken] + [given])
        gained = saved - apart * (sum(map(_sums_of, changed)) - before)
        if gained > most_gained:
            best, most_gained = changed, gained
    return best


def _sums_of(blocks: Iterable[int]) -> int:
    """Count the branches of a binary tree over all blocks that hold just these."""
    count, level = 0, set(blocks)
    while level:
        whole = {block >> 1 for block in level if block ^ 1 in level}
        count += len(level) - 2 * len(whole)
        level = whole
    return count


class CostModel:
    """Seconds a client takes: a line over its size, else those of its last call.

    The sums of a least-squares fit are kept over all calls, so a guess costs the same after a
    thousand rounds as after one. Calls count less the longer ago they were, and the first of each
    worker, which has yet to load what the others find, counts only until there is another.
    """

    def __init__(self) -> None:
        self._sizes: Callable[[int], float] | None = None
        self.clear()

    def clear(self, sizes: Callable[[int], float] | None = None) -> None:
        """Forget every call; `sizes` gives a client's size (its number of samples) by node id."""
        self._sizes = sizes
        self._warm: set[int] = set()
        self._is_first = True
        self._forget()

    def _forget(self) -> None:
        self._count = self._seconds = self._size = self._squares = self._products = 0.0

    @property
    def knows(self) -> bool:
        """Whether any call was seen, or sizes are known."""
        return self._sizes is not None or self._count > 0

    @property
    def in_seconds(self) -> bool:
        """Whether `costs` gives seconds, which it does once a call was seen."""
        return self._count > 0

    def add(self, node_id: int, seconds: float, worker: int = 0) -> None:
        """Learn from one call that a worker made."""
        is_warm = worker in self._warm
        self._warm.add(worker)
        if not is_warm and not self._is_first:
            return
        if is_warm and self._is_first:
            self._forget()
            self._is_first = False
        size = 0.0 if self._sizes is None else self._sizes(node_id)
        self._count = _KEPT * self._count + 1
        self._seconds = _KEPT * self._seconds + seconds
        self._size = _KEPT * self._size + size
        self._squares = _KEPT * self._squares + size * size
        self._products = _KEPT * self._products + size * seconds

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
