"""Narrower floats."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.checks import check_choice
from fedcompress.errors import PayloadError
from fedcompress.stage import Numbers, Stage
from fedcompress.streams import Forms, Layout, Scale, ScaleForm, Streams

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, repr=False)
class Cast(Stage):
    """Round to a 16-bit float, to nearest. Biased by its rounding, a part in 2**11 or 2**8.

    IEEE 754 binary16 has 11 significant bits but a narrow range, in which a small update would
    lose them: the array is scaled by the power of two that puts its largest magnitude near
    2**14. bfloat16 (Kalamkar et al., 2019) has 8 significant bits and the range of float32.

    Parameters
    ----------
    dtype : {"float16", "bfloat16"}
        Format that is sent.
    """

    name: ClassVar[str] = "cast"
    gives: ClassVar[Numbers] = "narrow floats"

    dtype: str

    def __post_init__(self) -> None:
        check_choice(self.name, "dtype", self.dtype, tuple(_DTYPES))

    @property
    def unbiased(self) -> bool:
        """Rounding to nearest is not, though the error is tiny."""
        return False

    def encode(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Streams]:
        """Round; for float16 the side stream is the power of two divided out."""
        del rng
        narrow = _DTYPES[self.dtype]
        limit = torch.finfo(narrow).max
        if narrow is torch.bfloat16:
            return x.clamp(-limit, limit).to(narrow), ()
        largest = float(x.abs().max()) if x.numel() else 0.0
        lowest = -126 if x.dtype == torch.float32 else -1022
        exponent = max(math.frexp(largest)[1] - 15, lowest) if largest else 0
        scale = math.ldexp(1.0, exponent)
        return (x / scale).to(narrow), (Scale(torch.tensor([scale], dtype=x.dtype)),)

    def decode(self, x: Tensor, side: Streams, like: Layout) -> Tensor:
        """Widen."""
        out = x.to(like.dtype).reshape(like.shape)
        if not side:
            return out
        (stream,) = side
        if not isinstance(stream, Scale):
            raise PayloadError(f"expected a scale, got a stream of {stream.kind}")
        return out.mul_(float(stream.values[0]))

    def side_forms(self, like: Layout) -> Forms:
        """Expect the scale of float16."""
        return (ScaleForm(1, like.dtype),) if self.dtype == "float16" else ()

    def layout_after(self, like: Layout, side: Streams) -> Layout:
        """Same shape, narrower."""
        del side
        return Layout(like.shape, _DTYPES[self.dtype], like.device)
