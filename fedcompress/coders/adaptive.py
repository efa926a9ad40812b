"""Small integers without tables: side information, and arrays too small to be worth one."""

import numpy as np

from fedcompress.errors import PayloadError


class AdaptiveEncoder:
    """Collects integers, each in a context; a context learns the histogram of its integers."""

    def __init__(self) -> None:
        self._values: list[np.ndarray] = []
        self._contexts: list[np.ndarray] = []

    def put(self, values: object, context: object) -> None:
        """Add integers (magnitudes below 2**40) in one context, or in one context each."""
        flat = np.atleast_1d(np.asarray(values, np.int64)).reshape(-1)
        self._values.append(flat)
        contexts = np.asarray(context, np.int64)
        self._contexts.append(np.broadcast_to(contexts.reshape(-1) if contexts.ndim else contexts, flat.shape))

    def bytes(self) -> bytes:
        """Code all of them."""
        from fedcompress.kernels import adaptive

        values = np.concatenate(self._values) if self._values else np.zeros(0, np.int64)
        contexts = np.concatenate(self._contexts) if self._values else np.zeros(0, np.int64)
        odds, counts = _memory(int(contexts.max(initial=0)) + 1)
        registers = np.array([0xFFFFFFFF, 0, -1, 0, 0], np.int64)
        out = np.empty(256 + values.size, np.uint8)
        done = 0
        while True:
            done += adaptive.put(registers, out, odds, counts, values[done:], contexts[done:])
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

    def take(self, count: int, context: object) -> np.ndarray:
        """Read ``count`` integers (int64)."""
        from fedcompress.kernels import adaptive

        values = np.empty(count, np.int64)
        contexts = np.ascontiguousarray(np.broadcast_to(np.asarray(context, np.int64), values.shape))
        if not adaptive.take(
            self._registers, self._data, self._odds, self._counts, values, contexts
        ):
            raise PayloadError("payload: symbols are cut short; the bytes are damaged")
        return values

    def take_trellis(
        self, contexts: np.ndarray, base: int, transitions: np.ndarray
    ) -> np.ndarray:
        """Read a matrix of levels of a trellis, in contexts base + 2 × context + quantizer."""
        from fedcompress.kernels import adaptive

        values = np.empty(contexts.shape, np.int64)
        if not adaptive.take_trellis(
            self._registers,
            self._data,
            self._odds,
            self._counts,
            values,
            contexts,
            base,
            transitions,
        ):
            raise PayloadError("payload: symbols are cut short; the bytes are damaged")
        return values

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
