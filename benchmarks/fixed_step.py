"""One uniform step for the whole update, then a library's coder for the integers."""

import struct
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import final

import constriction
import numpy as np
import zstandard
from numpy.typing import NDArray

from benchmarks.codec import BytesCodec
from benchmarks.updates import Update

Integers = NDArray[np.int32]

STEPS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)


class FixedStep(BytesCodec):
    """Round ``x / (step · σ)`` to integers, σ over all arrays; the integers of all in one row."""

    coder: str

    def __init__(self, step: float) -> None:
        self._step = step
        self.name = f"fixed step {step:g}σ, {self.coder}"
        self.curve = f"fixed step, {self.coder}"

    @abstractmethod
    def code(self, arrays: Sequence[Integers]) -> bytes:
        """Code the integers of each array."""

    @abstractmethod
    def read(self, data: bytes, sizes: Sequence[int]) -> Integers:
        """Give the integers of all arrays in one row."""

    def encode(self, update: Update) -> bytes:
        squares = sum(float(np.vdot(x, x)) for x in update.values())
        step = self._step * (squares / sum(x.size for x in update.values())) ** 0.5
        per_step = np.float32(1 / step)
        arrays = [np.rint(x.ravel() * per_step).astype(np.int32) for x in update.values()]
        return struct.pack("<d", step) + self.code(arrays)

    def decode(self, payload: bytes, like: Update) -> Mapping[str, NDArray[np.float32]]:
        (step,) = struct.unpack_from("<d", payload)
        flat = self.read(payload[8:], [x.size for x in like.values()])
        values = np.multiply(flat, np.float32(step), dtype=np.float32)
        ends = np.cumsum([x.size for x in like.values()])
        parts = np.split(values, ends[:-1])
        return {n: v.reshape(x.shape) for (n, x), v in zip(like.items(), parts, strict=True)}


def _narrow(arrays: Sequence[Integers]) -> NDArray[np.int16] | Integers:
    flat = np.concatenate(arrays)
    return flat.astype(np.int16) if np.abs(flat).max(initial=0) < 1 << 15 else flat


@final
class FixedStepPcodec(FixedStep):
    """pcodec on 16-bit integers, level 12, without delta coding."""

    coder = "pcodec"

    def code(self, arrays: Sequence[Integers]) -> bytes:
        import pcodec

        config = pcodec.ChunkConfig(
            compression_level=12,
            mode_spec=pcodec.ModeSpec.classic(),
            delta_spec=pcodec.DeltaSpec.no_op(),
        )
        return bytes(pcodec.standalone.simple_compress(_narrow(arrays), config))

    def read(self, data: bytes, sizes: Sequence[int]) -> Integers:
        import pcodec

        found = pcodec.standalone.simple_decompress(data)
        if found is None or found.size != sum(sizes):
            raise ValueError("pcodec gave another number of integers than it was handed")
        return np.asarray(found, np.int32)


@final
class FixedStepZstd(FixedStep):
    """Zstandard on 16-bit integers, level 1, which does better on them than level 3."""

    coder = "zstd-1"

    def code(self, arrays: Sequence[Integers]) -> bytes:
        narrow = _narrow(arrays)
        head = struct.pack("<B", narrow.itemsize)
        return head + zstandard.ZstdCompressor(level=1).compress(narrow.tobytes())

    def read(self, data: bytes, sizes: Sequence[int]) -> Integers:
        raw = zstandard.ZstdDecompressor().decompress(data[1:])
        return np.frombuffer(raw, np.int16 if data[0] == 2 else np.int32).astype(np.int32)


@final
class FixedStepAns(FixedStep):
    """constriction's ANS coder with a histogram of each array, which is sent with it."""

    coder = "ANS"

    def code(self, arrays: Sequence[Integers]) -> bytes:
        heads, counts_of_all = [], []
        coder = constriction.stream.stack.AnsCoder()
        # A stack: what is coded last is read first.
        for x in reversed(arrays):
            low = int(x.min())
            symbols = x - low
            counts = np.bincount(symbols)
            coder.encode_reverse(symbols, _model(counts))
            heads.append(struct.pack("<iI", low, len(counts)))
            counts_of_all.append(counts.astype(np.uint32))
        words = np.asarray(coder.get_compressed(), np.uint32)
        tables = zstandard.ZstdCompressor(level=19).compress(
            b"".join(reversed(heads)) + np.concatenate(counts_of_all[::-1]).tobytes()
        )
        return struct.pack("<I", len(tables)) + tables + words.tobytes()

    def read(self, data: bytes, sizes: Sequence[int]) -> Integers:
        (length,) = struct.unpack_from("<I", data)
        tables = zstandard.ZstdDecompressor().decompress(data[4 : 4 + length])
        heads = [struct.unpack_from("<iI", tables, 8 * i) for i in range(len(sizes))]
        all_counts = np.frombuffer(tables, np.uint32, offset=8 * len(sizes))
        words = np.frombuffer(data, np.uint32, offset=4 + length)
        coder = constriction.stream.stack.AnsCoder(words.copy())
        found, position = [], 0
        for size, (low, alphabet) in zip(sizes, heads, strict=True):
            counts = all_counts[position : position + alphabet]
            position += alphabet
            found.append(np.asarray(coder.decode(_model(counts), size)) + low)
        return np.concatenate(found).astype(np.int32)


def _model(counts: NDArray[np.integer]) -> "constriction.stream.model.Categorical":
    if len(counts) == 1:
        counts = np.append(counts, 0)  # the library wants at least two symbols
    return constriction.stream.model.Categorical(
        (counts / counts.sum()).astype(np.float32), perfect=False
    )
