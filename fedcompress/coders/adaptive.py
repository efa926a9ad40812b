"""Small integers without tables: side information, and arrays too small to be worth one."""

import numpy as np

from fedcompress.errors import PayloadError

_TRUST = 1  # bits seen that the first odds are worth
_NO_CONTEXTS = np.zeros(0, np.uint8)
_NO_TRELLIS = np.zeros((0, 3), np.int64)


class AdaptiveEncoder:
    """Collects integers, each in a context; a context learns the histogram of its integers."""

    def __init__(self) -> None:
        self._first = np.zeros(0, np.int64), 0
        self._parts: list[tuple[np.ndarray | tuple[int, ...], int, np.ndarray | None]] = []

    def put(self, values: np.ndarray, context: int, contexts: np.ndarray | None = None) -> None:
        """Add integers (magnitudes below 2**40), in ``context``, or in ``context + contexts``."""
        self._parts.append((values.reshape(-1), context, contexts))

    def put_few(self, context: int, *values: int) -> None:
        """Add a few integers in one context."""
        self._parts.append((values, context, None))

    def expect(self, odds: np.ndarray, context: int) -> None:
        """Begin contexts from ``context`` on with these odds against a magnitude's next step."""
        self._first = odds, context

    def bytes(self) -> bytes:
        """Code all of them."""
        from fedcompress.kernels import adaptive

        size = sum(len(part) for part, _, _ in self._parts)
        values, contexts = np.empty(size, np.int64), np.empty(size, np.int64)
        at = 0
        for part, context, more in self._parts:
            end = at + len(part)
            values[at:end] = part
            contexts[at:end] = context
            if more is not None:
                contexts[at:end] += more.reshape(-1)
            at = end
        most = max(int(contexts.max(initial=0)) + 1, self._first[1] + self._first[0].size)
        odds, counts = _memory(most)
        _expect(odds, counts, *self._first)
        registers = np.array([0xFFFFFFFF, 0, -1, 0, 0], np.int64)
        out = np.empty(256 + values.size, np.uint8)
        done = 0
        while True:
            done += adaptive.put(
                registers, out, odds, counts, values[done:], contexts[done:], size - done
            )
            if done == values.size:
                break
            out = np.concatenate([out, np.empty_like(out)])
        out = np.concatenate([out, np.empty(int(registers[3]) + 16, np.uint8)])
        return out[: adaptive.finish(registers, out)].tobytes()


class AdaptiveDecoder:
    """Reads integers back in the order and the contexts in which they were put."""

    def __init__(self, data: memoryview, contexts: int) -> None:
        self._data = np.frombuffer(data, np.uint8)
        self._odds, self._counts = _memory(contexts)
        head = bytes(data[:4]).ljust(4, b"\0")
        self._registers = np.array([0xFFFFFFFF, int.from_bytes(head, "big"), 4, 0, 0], np.int64)

    def take(self, count: int, context: int, contexts: np.ndarray = _NO_CONTEXTS) -> np.ndarray:
        """Read ``count`` integers (int64) in ``context``, or in ``context + contexts``."""
        from fedcompress.kernels import adaptive

        values = np.empty(count, np.int64)
        if not adaptive.take(*self.memory, values, context, contexts, 0, _NO_TRELLIS):
            raise PayloadError("payload: symbols are cut short; the bytes are damaged")
        return values

    @property
    def memory(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Registers, bytes, odds and counts, for kernels that read for themselves."""
        return self._registers, self._data, self._odds, self._counts

    def take_one(self, context: int) -> int:
        """Read one integer."""
        return int(self.take(1, context)[0])

    def check_end(self) -> None:
        """Refuse bytes that nothing asked for."""
        if self._data.size > self._registers[2]:
            raise PayloadError("payload: bytes left over behind symbols; they are damaged")


def _memory(contexts: int) -> tuple[np.ndarray, np.ndarray]:
    from fedcompress.kernels import adaptive

    return (
        np.full(contexts * adaptive.SLOTS, 1 << 14, np.int64),
        np.zeros(contexts * adaptive.SLOTS, np.int64),
    )


def _expect(odds: np.ndarray, counts: np.ndarray, first: np.ndarray, context: int) -> None:
    from fedcompress.kernels import adaptive

    slots = slice(context * adaptive.SLOTS, (context + first.size) * adaptive.SLOTS)
    steps = [0, *range(2, 2 + adaptive.UNARY)]
    odds[slots].reshape(-1, adaptive.SLOTS)[:, steps] = first[:, None]
    counts[slots].reshape(-1, adaptive.SLOTS)[:, steps] = _TRUST
