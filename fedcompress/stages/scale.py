"""One floating-point scale for a whole array."""

import numpy as np
import torch
from torch import Tensor

from fedcompress.errors import PayloadError
from fedcompress.streams import Layout, Scale, Streams

_WORKING: dict[torch.dtype, type[np.float32 | np.float64]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
}


def read_scale(side: Streams) -> float:
    """Give the one scale that a stage sent."""
    (stream,) = side
    if not isinstance(stream, Scale):
        raise PayloadError(f"expected a scale, got a stream of {stream.kind}")
    return float(stream.values[0])


def times_scale(x: Tensor, scale: float, like: Layout) -> Tensor:
    """Multiply symbols by a scale, staying finite where the product would overflow."""
    out = _product(x, scale, like.dtype).reshape(like.shape)
    limit = torch.finfo(like.dtype).max
    if abs(scale) > limit / float(1 << 31):
        out.clamp_(-limit, limit)
    return out


def _product(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Multiply integers by a number, in a dtype."""
    working = _WORKING.get(dtype)
    if x.device.type != "cpu" or x.dtype not in (torch.int16, torch.int32) or working is None:
        return x.to(dtype) * torch.tensor(scale, dtype=dtype, device=x.device)
    from fedcompress.kernels.uniform import multiples

    factor = np.asarray(scale, working)[()]
    # numpy asks for large pages, which spares most of the time that fresh memory takes.
    out = np.empty(x.shape, factor.dtype)
    multiples(x.contiguous().reshape(-1).numpy(), factor, out.reshape(-1))
    return torch.from_numpy(out)
