"""A matrix in units of the step, with what neighbours and directions have in common taken off."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedcompress.errors import PayloadError
from fedcompress.stages.axes import NONE, Axes, axes_of, choose_side
from fedcompress.stages.least_cost import choose_levels, entries_of

Floats32 = NDArray[np.float32]
Integers = NDArray[np.int32]
Dtype = type[np.float32] | type[np.float64]

_LEAST_SIZE = 1024  # entries below which no prediction was ever seen to pay
_FEW_RANKS, _FEW_BELOW = 16, 100_000  # components looked for in matrices of fewer entries
_LARGE = 256  # rows and columns from which on a second power iteration pays its time
_NOISE = 1.4  # measured to be best, as is the next: a trellis errs less than rounding does
_FACTOR_WEIGHT = 0.8
_LEAST = 8  # components looked for at least; more in larger matrices
_PLAIN = (1e-30, 1e30)  # steps whose products with float32 neither overflow nor underflow


@dataclass(frozen=True, eq=False)
class Common:
    """What was taken off: blocks transformed, and a prediction as the product of two factors.

    Attributes
    ----------
    side : int
        Which blocks of each row are transformed; see `axes_of`.
    axes : tuple[int, int]
        Their sides (h, w); (1, 1) if nothing is transformed.
    a, b : ndarray
        Levels (r, R) and (r, C) of the factors of each component; see `entries_of`.
    shifts : ndarray
        (r,); the product of a component's factors counts in units of ``2**-shift``.
    """

    side: int
    axes: Axes
    a: Integers
    b: Integers
    shifts: Integers

    @property
    def rank(self) -> int:
        """Components of the prediction."""
        return len(self.shifts)

    def add_to(self, rest: Floats32, sign: float, states: int) -> None:
        """Add the prediction times 1 or -1 to (R, C), to the same bits on every machine."""
        from fedcompress.kernels.low_rank import add_product

        a = entries_of(self.a, states).reshape(self.a.shape)
        b = entries_of(self.b, states).reshape(self.b.shape)
        add_product(rest, a, b, self.shifts, sign)


def analyse(
    matrix: NDArray[np.floating],
    shape: tuple[int, ...],
    step: float,
    *,
    states: int,
    rank: int,
    transform: bool,
) -> tuple[Floats32, Common]:
    """Divide a matrix by the step and take off what pays; gives the rest (R, C) too.

    Parameters
    ----------
    matrix : ndarray
        (R, C), float32 or float64, finite.
    shape : tuple of int
        Shape of the array that it stands for.
    step : float
        In the units of the matrix.
    states : int
        Of the trellis that quantizes factors.
    rank : int
        Most components of the prediction.
    transform : bool
        Whether to look for axes to transform.
    """
    if matrix.dtype == np.float32 and _PLAIN[0] < step < _PLAIN[1]:
        values, scale = np.ascontiguousarray(matrix, np.float32), 1 / step
    else:
        values, scale = (matrix.astype(np.float64) / step).astype(np.float32), 1.0
    side = choose_side(values, shape, scale) if transform else 0
    axes = axes_of(side, shape) or NONE
    if axes == NONE:
        rest = values * np.float32(scale)
    else:
        from fedcompress.kernels import cosine

        rest = cosine.transform(values, *axes, scale)
    looks = rank > 0 and rest.size >= _LEAST_SIZE
    factors = _predict(rest, rank, states) if looks else no_factors(*rest.shape)
    common = Common(side, axes, *factors)
    if common.rank:
        try:
            common.add_to(rest, -1.0, states)
        except OverflowError:
            common = Common(side, axes, *no_factors(*rest.shape))
    return rest, common


def synthesise(
    rest: Floats32, common: Common, step: float, states: int, dtype: Dtype
) -> NDArray[np.floating]:
    """Undo `analyse`, to the same bits on every machine; ``rest`` is overwritten."""
    if common.rank:
        try:
            common.add_to(rest, 1.0, states)
        except OverflowError as error:
            raise PayloadError(f"payload: {error}; the bytes are damaged") from error
    plain = dtype == np.float32 and _PLAIN[0] < step < _PLAIN[1]
    if common.axes != NONE:
        from fedcompress.kernels import cosine

        rest = cosine.inverse(rest, *common.axes, step if plain else 1.0)
    with np.errstate(over="ignore"):  # of damaged bytes; infinity is refused, or clipped
        if plain:
            return rest if common.axes != NONE else np.multiply(rest, np.float32(step), out=rest)
        limit = np.finfo(dtype).max
        return np.asarray(np.clip(rest.astype(np.float64) * step, -limit, limit), dtype)


@lru_cache(maxsize=256)
def no_factors(rows: int, columns: int) -> tuple[Integers, Integers, Integers]:
    """Give the factors of no prediction."""
    return np.zeros((0, rows), np.int32), np.zeros((0, columns), np.int32), np.zeros(0, np.int32)


def _predict(rest: Floats32, most: int, states: int) -> tuple[Integers, Integers, Integers]:
    """Choose a prediction."""
    from fedcompress.kernels.low_rank import factors, levels_of_factors
    from fedcompress.kernels.rank import choose

    rows, columns = rest.shape
    many = min(most, min(rows, columns) // 2, max(_LEAST, min(rows, columns) // 8))
    if rest.size < _FEW_BELOW:
        many = min(many, _FEW_RANKS)
    u, v = factors(rest, many, iterations=2 if min(rows, columns) >= _LARGE else 1)
    rank, noise = choose(rest, u, v)
    if rank == 0:
        return no_factors(rows, columns)
    # Two steps of the trellis to a whole number of either factor, four to their product.
    a, b, shifts = levels_of_factors(u[:, :rank], v[:, :rank], noise * _NOISE, 2.0)
    levels_a = choose_levels(a, (rank, rows), states, _FACTOR_WEIGHT)
    levels_b = choose_levels(b, (rank, columns), states, _FACTOR_WEIGHT)
    return levels_a, levels_b, shifts + np.int32(2)
