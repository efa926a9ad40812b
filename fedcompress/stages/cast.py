"""Narrower floats."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.checks import check_choice
from fedcompress.stage import Numbers, Stage
from fedcompress.stages.blocks import largest
from fedcompress.stages.scale import read_scale
from fedcompress.streams import Forms, Layout, Scale, ScaleForm, Streams

_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
# An array is scaled so that its largest magnitude lies below 2 to this, which the format holds.
# bfloat16 needs no scale: it has the range of float32.
_TOP = {"float16": 15, "float8_e4m3fn": 8, "float8_e5m2": 15}


@dataclass(frozen=True, repr=False)
class Cast(Stage):
    """Round to a float of 16 or 8 bits, to nearest. Biased by its rounding.

    IEEE 754 binary16 has 11 significant bits, bfloat16 (Kalamkar et al., 2019) has 8 and the
    range of float32; of the eight-bit formats (Micikevicius et al., 2022) E4M3 has 4 and E5M2
    has 3. All but bfloat16 have a narrow range, in which a small update would be lost: the
    array is divided by the power of two that puts its largest magnitude just below the top, so
    that nothing overflows. What is below 2**-17 (E4M3) or 2**-31 (E5M2) of it may become zero.

    Parameters
    ----------
    dtype : {"float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"}
        Format that is sent, by its name in torch.
    """

    name: ClassVar[str] = "cast"
    gives: ClassVar[Numbers] = "narrow floats"

    dtype: str

    def __post_init__(self) -> None:
        check_choice(self.name, "dtype", self.dtype, tuple(_DTYPES))

    @property
    def unbiased(self) -> bool:
        """Rounding to nearest is not, though the error is small."""
        return False

    def encode(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Streams]:
        """Round; the side stream, but for bfloat16, is the power of two divided out."""
        del rng
        narrow = _DTYPES[self.dtype]
        if self.dtype not in _TOP:
            limit = torch.finfo(narrow).max
            return x.clamp(-limit, limit).to(narrow), ()
        most = float(largest(x.reshape(1, -1))) if x.numel() else 0.0
        lowest = -126 if x.dtype == torch.float32 else -1022
        exponent = max(math.frexp(most)[1] - _TOP[self.dtype], lowest) if most else 0
        scale = math.ldexp(1.0, exponent)
        scaled = x if exponent == 0 else x / scale
        return scaled.to(narrow), (Scale(torch.tensor([scale], dtype=x.dtype)),)

    def decode(self, x: Tensor, side: Streams, like: Layout) -> Tensor:
        """Widen."""
        out = x.to(like.dtype).reshape(like.shape)
        if not side:
            return out
        scale, limit = read_scale(side), torch.finfo(like.dtype).max
        out.mul_(scale)
        # The largest floats round up to a power of two that their own format does not hold.
        return out.clamp_(-limit, limit) if abs(scale) > limit / (1 << 16) else out

    def side_forms(self, like: Layout) -> Forms:
        """Expect the scale, where there is one."""
        return (ScaleForm(1, like.dtype),) if self.dtype in _TOP else ()

    def layout_after(self, like: Layout, side: Streams) -> Layout:
        """Same shape, narrower."""
        del side
        return Layout(like.shape, _DTYPES[self.dtype], like.device)
