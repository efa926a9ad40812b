"""Float32 as it is, and lossless coders of it."""

from collections.abc import Mapping
from typing import final

import numpy as np
import zstandard
from numpy.typing import NDArray

from benchmarks.codec import BytesCodec
from benchmarks.updates import Update


class _Flat(BytesCodec):
    """Codes the arrays one after another as one row of float32."""

    def __init__(self) -> None:
        self.curve = self.name

    def encode(self, update: Update) -> bytes:
        return self._code(np.concatenate([x.ravel() for x in update.values()]))

    def decode(self, payload: bytes, like: Update) -> Mapping[str, NDArray[np.float32]]:
        flat = self._read(payload)
        parts = np.split(flat, np.cumsum([x.size for x in like.values()])[:-1])
        return {n: v.reshape(x.shape) for (n, x), v in zip(like.items(), parts, strict=True)}

    def _code(self, flat: NDArray[np.float32]) -> bytes:
        return flat.tobytes()

    def _read(self, payload: bytes) -> NDArray[np.float32]:
        return np.frombuffer(payload, np.float32).copy()


@final
class Raw(_Flat):
    """float32 as it lies in memory."""

    name = "float32"


@final
class Zstd(_Flat):
    """Zstandard, level 3."""

    name = "zstd-3 on float32"

    def _code(self, flat: NDArray[np.float32]) -> bytes:
        return zstandard.ZstdCompressor(level=3).compress(flat.tobytes())

    def _read(self, payload: bytes) -> NDArray[np.float32]:
        return np.frombuffer(zstandard.ZstdDecompressor().decompress(payload), np.float32)


@final
class Pcodec(_Flat):
    """pcodec on float32 with its own defaults."""

    name = "pcodec on float32"

    def _code(self, flat: NDArray[np.float32]) -> bytes:
        import pcodec

        return bytes(pcodec.standalone.simple_compress(flat, pcodec.ChunkConfig()))

    def _read(self, payload: bytes) -> NDArray[np.float32]:
        import pcodec

        found = pcodec.standalone.simple_decompress(payload)
        return np.asarray(found, np.float32)
