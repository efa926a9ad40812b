"""SZ3, error-bounded coding of floats, as APPFL and FedSZ send them."""

import struct
from collections.abc import Mapping
from typing import final

import numpy as np
from numpy.typing import NDArray

from benchmarks.codec import BytesCodec
from benchmarks.updates import Update


@final
class SZ3(BytesCodec):
    """SZ3 (Liang et al., 2023) on each array, error bounded relative to its range."""

    curve = "SZ3"

    def __init__(self, relative: float) -> None:
        self._relative = relative
        self.name = f"SZ3, REL {relative:g}"

    def encode(self, update: Update) -> bytes:
        from pysz import sz, szConfig, szErrorBoundMode

        coded = []
        for x in update.values():
            config = szConfig((x.size,))
            config.errorBoundMode = szErrorBoundMode.REL
            config.relErrorBound = self._relative
            data = sz.compress(np.ascontiguousarray(x).reshape(-1), config)[0].tobytes()
            coded.append(struct.pack("<I", len(data)) + data)
        return b"".join(coded)

    def decode(self, payload: bytes, like: Update) -> Mapping[str, NDArray[np.float32]]:
        from pysz import sz

        found, position = {}, 0
        for name, x in like.items():
            (length,) = struct.unpack_from("<I", payload, position)
            data = np.frombuffer(payload, np.uint8, length, position + 4).copy()
            position += 4 + length
            found[name] = np.asarray(sz.decompress(data, np.float32, (x.size,))[0]).reshape(x.shape)
        return found
