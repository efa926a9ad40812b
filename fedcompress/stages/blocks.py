"""Arrays in blocks of consecutive entries, row-major, each block with a scale of its own.

The last block is as short as what is left; nothing is padded. One block alone sends its scale
exactly. Many send theirs as symbols: the exponent and a few bits of the fraction of the scale,
which are the top of its bits read as an integer. Scales of an array lie within a few octaves,
so that a coder needs some five or six bits for each.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fedcompress.errors import PayloadError
from fedcompress.stages.scale import read_scale
from fedcompress.streams import Form, Layout, Scale, ScaleForm, Stream, SymbolForm, Symbols

_BITS = {torch.float32: (torch.int32, 23), torch.float64: (torch.int64, 52)}


def block_count(n: int, block: int | None) -> int:
    """Count the blocks of ``block`` entries that ``n`` entries make; None is one block."""
    return 1 if block is None else max(1, -(-n // block))


def by_block(x: Tensor, block: int | None, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Reduce each block: ``reduce`` maps (blocks, entries) to (blocks,)."""
    flat = x.reshape(-1)
    if flat.numel() == 0:
        return torch.zeros(1, dtype=x.dtype, device=x.device)
    whole, rest = _split(flat, block)
    parts = [reduce(part) for part in (whole, rest) if part.numel()]
    return torch.cat(parts)


def largest(blocks: Tensor) -> Tensor:
    """Give the largest magnitude of each row."""
    return torch.maximum(blocks.amax(1), -blocks.amin(1)).abs_()  # never the zero with a sign


def times_blocks(x: Tensor, scales: Tensor, block: int | None) -> Tensor:
    """Multiply each block of ``x`` (flat, contiguous) by its scale, in place, staying finite."""
    whole, rest = _split(x, block)
    whole.mul_(scales[: len(whole), None])
    rest.mul_(scales[len(whole) :, None])
    limit = torch.finfo(x.dtype).max
    if bool(scales.max() > limit / float(1 << 31)):
        x.clamp_(-limit, limit)
    return x


def over_blocks(x: Tensor, scales: Tensor, block: int | None) -> Tensor:
    """Divide each block of ``x`` (flat) by its scale; give zeros where the scale is 0."""
    scales = torch.where(scales == 0, torch.inf, scales)
    out = torch.empty_like(x)
    for part, given, divisor in zip(
        _split(out, block), _split(x, block), _split_scales(scales, x, block), strict=True
    ):
        torch.div(given, divisor, out=part)
    return out


def scale_stream(scales: Tensor, fraction_bits: int, *, up: bool) -> tuple[Stream, Tensor]:
    """Give the stream of the scales, and the scales as they will be read.

    Parameters
    ----------
    scales : Tensor
        Not negative, float32 or float64, one for each block.
    fraction_bits : int
        How many are sent behind the leading bit of a scale.
    up : bool
        Whether scales are rounded up, or to nearest.
    """
    if scales.numel() == 1:
        return Scale(scales), scales
    bits, fraction = _BITS[scales.dtype]
    shift = fraction - fraction_bits
    added = (1 << shift) - 1 if up else 1 << (shift - 1)
    codes = (scales.view(bits) + added) >> shift
    codes = codes.clamp_(max=_largest_code(scales.dtype, fraction_bits)).to(torch.int32)
    return Symbols(codes), _from_codes(codes, scales.dtype, fraction_bits)


def scale_form(like: Layout, block: int | None) -> Form:
    """Name the form of the stream of scales for an array of this layout."""
    count = block_count(like.size, block)
    return ScaleForm(1, like.dtype) if count == 1 else SymbolForm((count,))


def read_scales(stream: Stream, like: Layout, fraction_bits: int) -> Tensor:
    """Read the scales, none negative."""
    if not isinstance(stream, Symbols):
        scale = read_scale((stream,))
        if scale < 0:
            raise PayloadError(f"payload: a scale of {scale} is negative; the bytes are damaged")
        return torch.tensor([scale], dtype=like.dtype, device=like.device)
    codes = stream.values
    if int(codes.min()) < 0 or int(codes.max()) > _largest_code(like.dtype, fraction_bits):
        raise PayloadError("payload: the scale of a block is out of range; the bytes are damaged")
    return _from_codes(codes, like.dtype, fraction_bits)


def _largest_code(dtype: torch.dtype, fraction_bits: int) -> int:
    """Give the code of the largest finite scale."""
    fraction = _BITS[dtype][1]
    exponents = dtype.itemsize * 8 - 1 - fraction
    return ((1 << exponents) - 1 << fraction_bits) - 1


def _from_codes(codes: Tensor, dtype: torch.dtype, fraction_bits: int) -> Tensor:
    bits, fraction = _BITS[dtype]
    return (codes.to(bits) << (fraction - fraction_bits)).view(dtype)


def _split(flat: Tensor, block: int | None) -> tuple[Tensor, Tensor]:
    """View the whole blocks as (blocks, block) and the entries left over as (0 or 1, rest)."""
    n = flat.numel()
    size = n if block is None else block
    whole = n // size * size if size else 0
    rest = flat[whole:]
    return flat[:whole].view(-1, max(size, 1)), rest.view(min(1, rest.numel()), rest.numel())


def _split_scales(scales: Tensor, x: Tensor, block: int | None) -> tuple[Tensor, Tensor]:
    count = len(_split(x, block)[0])
    return scales[:count, None], scales[count:, None]
