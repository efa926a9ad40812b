"""Blockwise 8-bit and 4-bit floats of bitsandbytes, as NVFlare sends them."""

import struct
from abc import abstractmethod
from collections.abc import Mapping
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.codec import BytesCodec
from benchmarks.updates import Update


class _Blocks(BytesCodec):
    """Codes each array by itself; the scales of its blocks are sent as float32."""

    def __init__(self) -> None:
        self.curve = self.name

    def encode(self, update: Update) -> bytes:
        return b"".join(
            self._code(torch.from_numpy(np.ascontiguousarray(x)).ravel()) for x in update.values()
        )

    def decode(self, payload: bytes, like: Update) -> Mapping[str, NDArray[np.float32]]:
        found, position = {}, 0
        for name, x in like.items():
            codes, scales = struct.unpack_from("<II", payload, position)
            position += 8
            code = np.frombuffer(payload, np.uint8, codes, position).copy()
            position += codes
            scale = np.frombuffer(payload, np.float32, scales, position).copy()
            position += 4 * scales
            flat = self._read(torch.from_numpy(code), torch.from_numpy(scale), x.size)
            found[name] = flat.numpy().reshape(x.shape)
        return found

    @abstractmethod
    def _code(self, x: torch.Tensor) -> bytes: ...

    @abstractmethod
    def _read(self, code: torch.Tensor, scale: torch.Tensor, size: int) -> torch.Tensor: ...


def _joined(code: torch.Tensor, scale: torch.Tensor) -> bytes:
    head = struct.pack("<II", code.numel(), scale.numel())
    return head + code.numpy().tobytes() + scale.float().numpy().tobytes()


@final
class Blocks8(_Blocks):
    """Dynamic 8-bit floats in blocks of 4096 (Dettmers et al., 2022)."""

    name = "bitsandbytes 8-bit"

    def _code(self, x: torch.Tensor) -> bytes:
        from bitsandbytes import functional

        code, state = functional.quantize_blockwise(x)
        return _joined(code, state.absmax)

    def _read(self, code: torch.Tensor, scale: torch.Tensor, size: int) -> torch.Tensor:
        from bitsandbytes import functional

        flat: torch.Tensor = functional.dequantize_blockwise(code, absmax=scale, blocksize=4096)
        return flat


@final
class NormalFloat4(_Blocks):
    """NF4, quantiles of a normal distribution, in blocks of 64 (Dettmers et al., 2023)."""

    name = "bitsandbytes nf4"

    def _code(self, x: torch.Tensor) -> bytes:
        from bitsandbytes import functional

        code, state = functional.quantize_4bit(x, quant_type="nf4", blocksize=64)
        return _joined(code, state.absmax)

    def _read(self, code: torch.Tensor, scale: torch.Tensor, size: int) -> torch.Tensor:
        from bitsandbytes import functional

        state = functional.QuantState(
            absmax=scale,
            shape=torch.Size([size]),
            code=functional.get_4bit_type("nf4", device="cpu"),
            blocksize=64,
            quant_type="nf4",
            dtype=torch.float32,
        )
        flat: torch.Tensor = functional.dequantize_4bit(code.reshape(-1, 1), state)
        return flat
