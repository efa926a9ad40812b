"""One floating-point scale for a whole array."""

import numpy as np
import torch
from torch import Tensor

from fedcompress.errors import PayloadError
from fedcompress.streams import Layout, Scale, Streams


def read_scale(side: Streams) -> float:
    """Give the one scale that a stage sent."""
    (stream,) = side
    if not isinstance(stream, Scale):
        raise PayloadError(f"expected a scale, got a stream of {stream.kind}")
    return float(stream.values[0])


def times_scale(x: Tensor, scale: float, like: Layout) -> Tensor:
    """Multiply symbols by a scale, staying finite where the product would overflow."""
    out = _product(x, torch.tensor(scale, dtype=like.dtype, device=x.device)).reshape(like.shape)
    limit = torch.finfo(like.dtype).max
    if abs(scale) > limit / float(1 << 31):
        out.clamp_(-limit, limit)
    return out


def _product(x: Tensor, scale: Tensor) -> Tensor:
    """Multiply integers by a number of no dimensions, in its dtype."""
    if x.device.type != "cpu" or x.dtype not in (torch.int16, torch.int32):
        return x.to(scale.dtype) * scale
    from fedcompress.kernels.uniform import multiples

    factor = scale.numpy()[()]
    # numpy asks for large pages, which spares most of the time that fresh memory takes.
    out = np.empty(x.shape, factor.dtype)
    multiples(x.contiguous().reshape(-1).numpy(), factor, out.reshape(-1))
    return torch.from_numpy(out)
