"""Rate-distortion optimized quantization of what a transform and a low-rank prediction leave."""

import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.checks import check_integer, check_positive
from fedcompress.errors import PayloadError, SpecError
from fedcompress.stage import Numbers, Stage
from fedcompress.stages.axes import NONE, Axes, axes_of
from fedcompress.stages.decorrelate import Common, Dtype, analyse, no_factors, synthesise
from fedcompress.stages.least_cost import choose_levels, entries_of
from fedcompress.streams import (
    Form,
    Layout,
    Stream,
    Streams,
    SymbolForm,
    Symbols,
)

_MOST_RANK = 64
_LEAST_SIZE = 256  # entries below which a header costs more than it saves
_MOST_SHIFT = 60
_CENTRE = 0x3C00  # bfloat16 of 2**-7, about which steps lie: what is sent is mostly small
_MOST_STEPS = float(1 << 22)  # of a largest entry, beyond which float32 rounds too much


@dataclass(frozen=True, repr=False)
class Rdo(Stage):
    """Quantize at the least bits for the error: transform, prediction, trellis. Biased.

    A discrete cosine transform runs over the taps of convolution kernels, and over image axes
    that it finds; a low-rank prediction with rounded factors is taken off; what is left is
    quantized by one step for the whole update, each level chosen for its squared error and its
    bits together. Where one of these does not pay it is left out, array by array. After Ahmed,
    Natarajan & Rao (1974), the transform; Vogels et al. (2019), "PowerSGD", the prediction;
    Sullivan & Wiegand (1998), the choice of levels; Haase et al. (2020), "Dependent scalar
    quantization for neural network compression", the trellis.

    Parameters
    ----------
    step : float
        Step in units of the root mean square of the whole update, where the stage stands first
        in its chain, else of the array.
    rate_weight : float
        What a bit counts against squared error, in units of what is best for entropy coding at
        that step; more of it gives fewer bits and a larger error.
    states : {0, 4, 8, 16}
        States of the trellis; 0 quantizes every entry by itself.
    rank : int
        Most components of the prediction, 0 to 64; 0 predicts nothing.
    transform : bool
        Whether to look for axes to transform.
    """

    name: ClassVar[str] = "rdo"
    gives: ClassVar[Numbers] = "symbols"
    joins_vectors: ClassVar[bool] = True

    step: float
    rate_weight: float = 1.0
    states: int = 8
    rank: int = _MOST_RANK
    transform: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", check_positive(self.name, "step", self.step))
        weight = check_positive(self.name, "rate_weight", self.rate_weight)
        object.__setattr__(self, "rate_weight", weight)
        if self.states not in (0, 4, 8, 16) or isinstance(self.states, bool):
            raise SpecError(f"rdo: states must be 0, 4, 8 or 16, got {self.states!r}")
        check_integer(self.name, "rank", self.rank, 0, _MOST_RANK)
        if not isinstance(self.transform, bool):
            raise SpecError(f"rdo: transform must be True or False, got {self.transform!r}")

    @property
    def unbiased(self) -> bool:
        """Never: levels lean towards zero."""
        return False

    def at(self, step: float) -> "RdoAt":
        """Give the stage that encodes arrays at this absolute step; it decodes as this one."""
        return RdoAt(self, step)

    def for_update(self, update: Mapping[str, Tensor]) -> "RdoAt":
        """Take one step for all arrays, in units of the update's root mean square."""
        return self.at(self.step * root_mean_square(update.values()))

    def encode(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Streams]:
        """Quantize one array by a step in units of its own root mean square."""
        return self.for_update({"": x}).encode(x, rng)

    def decode(self, x: Tensor, side: Streams, like: Layout) -> Tensor:
        """Add the prediction to the levels, transform back, multiply by the step.

        Where ``x`` holds entries, not levels (see `SymbolForm`), it is overwritten.
        """
        rest = entries_of(x.cpu().numpy().reshape(like.shape), self.states)
        common = _read_common(side, like)
        dtype: Dtype = np.float64 if like.dtype == torch.float64 else np.float32
        rest = rest.reshape(_matrix(like.shape))
        out = synthesise(rest, common, _read_step(side, like.dtype) / 2, self.states, dtype)
        return torch.from_numpy(out).reshape(like.shape).to(like.device)

    def next_form(self, like: Layout, read: Streams) -> Form | None:
        """Expect the step, for larger matrices what was taken off; where that says so, factors."""
        looks = _has_header(like.shape)
        if len(read) == 0:
            return SymbolForm((_step_length(like.dtype) + 2 * looks,))
        if not looks or len(read) == 4:
            return None
        if len(read) == 1:
            rank = _read_header(read, like)[0]
            return SymbolForm((rank,)) if rank else None
        rank = _integers(read[1]).size
        rows, columns = _matrix(like.shape)
        length = rows if len(read) == 2 else columns
        return SymbolForm((rank, length), self.states, as_entries=True)

    def last_stream(self, x: Tensor) -> Stream:
        """Mark levels of a trellis."""
        return Symbols(x, states=self.states)

    def last_form(self, layout: Layout) -> Form:
        """Expect levels, of a trellis if it has states."""
        return SymbolForm(layout.shape, self.states, as_entries=True)


@dataclass(frozen=True, repr=False)
class RdoAt(Stage):
    """`Rdo` at an absolute step, in the units of the update."""

    name: ClassVar[str] = "rdo"
    gives: ClassVar[Numbers] = "symbols"
    joins_vectors: ClassVar[bool] = True

    settings: Rdo
    step: float

    @property
    def unbiased(self) -> bool:
        """Never."""
        return False

    def encode(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Streams]:
        """Quantize; the side streams are the step with what was taken off, and factors."""
        del rng
        shape = tuple(x.shape)
        matrix = x.detach().cpu().numpy().reshape(_matrix(shape))
        step = _sendable(self.step, matrix, x.dtype)
        looks = _has_header(shape)
        rest, common = analyse(
            matrix,
            shape,
            step / 2,
            states=self.settings.states,
            rank=self.settings.rank if looks else 0,
            transform=looks and self.settings.transform,
        )
        side = _side_streams(_step_numbers(step, x.dtype), common, looks, self.settings.states)
        levels = choose_levels(rest, shape, self.settings.states, self.settings.rate_weight)
        return torch.from_numpy(levels).to(x.device), side

    def decode(self, x: Tensor, side: Streams, like: Layout) -> Tensor:
        """Decode as the settings do."""
        return self.settings.decode(x, side, like)

    def next_form(self, like: Layout, read: Streams) -> Form | None:
        """Expect what the settings do."""
        return self.settings.next_form(like, read)

    def last_stream(self, x: Tensor) -> Stream:
        """Mark levels of a trellis."""
        return self.settings.last_stream(x)

    def last_form(self, layout: Layout) -> Form:
        """Expect levels."""
        return self.settings.last_form(layout)


def root_mean_square(arrays: Collection[Tensor]) -> float:
    """Give the root mean square of all entries of all arrays; 0 if there are none."""
    count = sum(x.numel() for x in arrays)
    total = sum(float(torch.linalg.vector_norm(x)) ** 2 for x in arrays)
    if 1e-30 < total < math.inf:
        return math.sqrt(total / count)
    # Squares of very large and small numbers leave the range of floats; their ratios do not.
    largest = max((float(x.abs().max()) for x in arrays if x.numel()), default=0.0)
    if largest == 0:
        return 0.0
    ratios = (float(torch.linalg.vector_norm(x.double() / largest)) for x in arrays)
    return largest * math.sqrt(sum(ratio**2 for ratio in ratios) / count)


@cache
def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    rows = shape[0] if len(shape) > 1 else 1
    return rows, math.prod(shape) // max(rows, 1)


@cache
def _has_header(shape: tuple[int, ...]) -> bool:
    rows, columns = _matrix(shape)
    return min(rows, columns) >= 4 and rows * columns >= _LEAST_SIZE


def _step_length(dtype: torch.dtype) -> int:
    return 4 if dtype == torch.float64 else 1


def _step_numbers(step: float, dtype: torch.dtype) -> list[int]:
    """Give a step as integers: its bits, or those of a bfloat16, which are enough for a step."""
    if dtype == torch.float64:
        return list(struct.unpack("<4H", struct.pack("<d", step)))
    return [(struct.unpack("<I", struct.pack("<f", step))[0] >> 16) - _CENTRE]


def _step_of(numbers: list[int], dtype: torch.dtype) -> float:
    """Read a step back; 0 where there is none."""
    try:
        if dtype == torch.float64:
            step: float = struct.unpack("<d", struct.pack("<4H", *numbers))[0]
        else:
            (step,) = struct.unpack("<f", struct.pack("<HH", 0, numbers[0] + _CENTRE))
    except struct.error:
        return 0.0
    return step if 0 < step < math.inf else 0.0


def _sendable(step: float, matrix: np.ndarray, dtype: torch.dtype) -> float:
    """Round a step as it is sent, within what levels and float32 can hold."""
    largest = max(float(matrix.max(initial=0)), -float(matrix.min(initial=0)))
    limits = torch.finfo(dtype)
    step = min(max(step, largest / _MOST_STEPS, limits.tiny), limits.max / 2)
    if dtype == torch.float64:
        return step
    fraction, exponent = math.frexp(step)
    return math.ldexp(round(fraction * 256), exponent - 8)


def _side_streams(step: list[int], common: Common, looks: bool, states: int) -> list[Stream]:
    header = np.array([*step, common.rank, common.side] if looks else step, np.int32)
    side: list[Stream] = [Symbols(torch.from_numpy(header))]
    if common.rank:
        shifts = common.shifts.copy()
        shifts[1:] -= common.shifts[:-1]
        side.append(Symbols(torch.from_numpy(shifts)))
        side += [Symbols(torch.from_numpy(x), states) for x in (common.a, common.b)]
    return side


def _read_step(side: Streams, dtype: torch.dtype) -> float:
    step = _step_of(_integers(side[0])[: _step_length(dtype)].tolist(), dtype)
    if step == 0:
        raise PayloadError("payload: the step of rdo is not above zero; the bytes are damaged")
    return step


def _read_header(side: Streams, like: Layout) -> tuple[int, int, Axes]:
    rank, number = _integers(side[0])[_step_length(like.dtype) :].tolist()
    axes = axes_of(number, like.shape)
    if axes is None or not 0 <= rank <= min(_MOST_RANK, *_matrix(like.shape)):
        raise PayloadError(
            f"payload: a prediction of rank {rank} and blocks {number} for an array of shape "
            f"{like.shape}; the bytes are damaged"
        )
    return rank, number, axes


def _read_common(side: Streams, like: Layout) -> Common:
    none = no_factors(*_matrix(like.shape))
    if not _has_header(like.shape):
        return Common(0, NONE, *none)
    rank, number, axes = _read_header(side, like)
    if rank == 0:
        return Common(number, axes, *none)
    differences, a, b = (_integers(stream) for stream in side[1:])
    shifts = np.cumsum(differences, dtype=np.int64)
    if int(np.abs(differences).max()) > 2 * _MOST_SHIFT or int(np.abs(shifts).max()) > _MOST_SHIFT:
        raise PayloadError("payload: factors of a prediction out of range; the bytes are damaged")
    return Common(number, axes, a, b, shifts.astype(np.int32))


def _integers(stream: Stream) -> np.ndarray:
    if not isinstance(stream, Symbols):
        raise PayloadError(f"expected symbols, got a stream of {stream.kind}")
    values: np.ndarray = stream.values.cpu().numpy()
    return values
