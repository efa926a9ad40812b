"""Low-rank approximation with rounded factors, whose product is the same on every machine.

Halko, Martinsson & Tropp (2011), "Finding structure with randomness", with a fixed start.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedcompress.kernels.jit import kernel

_TILE = 256  # columns of a product whose sums stay in the first-level cache
_U = np.uint64  # of indices: no one asks whether they count from the end
_SPARE = 8  # directions beyond the rank: they make the last ones kept more accurate


def factors(
    x: NDArray[np.float32], rank: int, iterations: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Approximate ``x`` (R, C) by ``u @ v.T`` with ``u`` (R, r) and ``v`` (C, r).

    Columns are ordered by singular value, and hold its square root each; ``r`` is ``rank``, or
    less where the matrix has fewer independent directions. Entries may reach 1e15.
    """
    width = min(rank + _SPARE, *x.shape)
    q = _orthonormal(np.ascontiguousarray(x @ _sketch(x, width).T))
    for _ in range(iterations - 1):
        q = _orthonormal(np.ascontiguousarray(x @ (q.T @ x).T))
    b = q.T @ x
    values, turn = _eigen(b @ b.T)
    keep = min(rank, int((values > 1e-10 * max(float(values[0]), 1e-30)).sum()))
    singular = np.sqrt(values[:keep])
    u = (q @ turn[:, :keep].astype(np.float32)) * np.sqrt(singular).astype(np.float32)
    v = b.T @ (turn[:, :keep] / np.sqrt(singular)).astype(np.float32)
    return u, v


def scaled_factors(
    u: NDArray[np.float32], v: NDArray[np.float32], noise: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
    """Scale factors so that rounding them to integers moves their product by ``noise``.

    Returns ``a`` (R, r), ``b`` (C, r) and shifts ``s`` (r,): the sum of ``a[:, k] b[:, k].T /
    2**s[k]`` is ``u @ v.T``, and where rounding them adds an error uniform over one, that of the
    product has a mean square of ``noise`` at most. Every component has an equal share of it but
    for powers of two, which is where the bits of all factors together are least.
    """
    a, b, shifts = levels_of_factors(u, v, noise, 1.0)
    return a.T, b.T, shifts


def round_factors(
    u: NDArray[np.float32], v: NDArray[np.float32], noise: float
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Round factors so that their product moves by about ``noise`` mean squared error at most.

    Returns integers ``a`` (R, r), ``b`` (C, r) and shifts (r,), as `scaled_factors` explains.
    """
    a, b, shifts = scaled_factors(u, v, noise)
    return np.rint(a).astype(np.int32), np.rint(b).astype(np.int32), shifts


def product(
    a: NDArray[np.number], b: NDArray[np.number], shifts: NDArray[np.int32]
) -> NDArray[np.float32]:
    """Compute the sum of ``a[:, k] b[:, k].T / 2**shifts[k]``, to the same bits on any machine.

    ``a`` (R, r) and ``b`` (C, r) hold integers, of any dtype.

    All terms are integers over one power of two, and so are all sums of them whatever their
    order, as long as they fit a mantissa. Raises `OverflowError` if they do not.
    """
    total = np.zeros((len(a), len(b)), np.float32)
    of_rows = np.ascontiguousarray(a.T, np.float64)
    add_product(total, of_rows, np.ascontiguousarray(b.T, np.float64), shifts, 1.0)
    return total


def add_product(
    total: NDArray[np.float32],
    a: NDArray[np.floating],
    b: NDArray[np.floating],
    shifts: NDArray[np.int32],
    sign: float,
) -> None:
    """Add to ``total`` (R, C) the product as `product` gives it, of ``a`` (r, R) and ``b`` (r, C).

    Times ``sign``, which is 1 or -1.
    """
    if len(shifts) == 0:
        return
    scaled = np.empty(a.shape)
    bound, unit = _scaled(a, b, shifts, scaled)
    if not bound < 2.0**52:
        raise OverflowError("low-rank factors are too large for an exact product")
    exact = np.float32 if bound < 2.0**24 else np.float64
    _add(total, scaled.astype(exact), b.astype(exact, copy=False), exact(unit), np.float32(sign))


@kernel
def _scaled(
    a: np.ndarray, b: np.ndarray, shifts: np.ndarray, scaled: np.ndarray
) -> tuple[float, float]:
    """Bring ``a`` to one power of two, and give it with a bound of all sums of products."""
    rank, rows = a.shape
    most = shifts[0]
    for k in range(1, rank):
        most = max(most, shifts[k])
    bounds = np.zeros(rows)
    for k in range(rank):
        peak = 0.0
        for j in range(b.shape[1]):
            peak = max(peak, np.float64(abs(b[k, j])))
        weight = 1.0 if peak > 0 else 0.0
        for _ in range(most - shifts[k]):
            weight *= 2.0
        for i in range(rows):
            scaled[k, i] = a[k, i] * weight
            bounds[i] += abs(scaled[k, i]) * peak
    bound = 0.0
    for i in range(rows):
        bound = max(bound, bounds[i])
    unit = 1.0
    for _ in range(abs(most)):
        unit *= 0.5 if most > 0 else 2.0
    return bound, unit


@kernel
def _add(
    total: np.ndarray, a: np.ndarray, b: np.ndarray, unit: np.floating, sign: np.float32
) -> None:
    # All sums are exact, so that their order is free.
    rank, rows = a.shape
    columns = b.shape[1]
    sums = np.empty(_TILE, b.dtype)
    for start in range(0, columns, _TILE):
        count = min(_TILE, columns - start)
        for i in range(rows):
            f0 = a[0, i]
            for j in range(count):
                sums[_U(j)] = f0 * b[_U(0), _U(start + j)]
            whole = 1 + (rank - 1) // 4 * 4
            for k in range(1, whole, 4):
                f0, f1, f2, f3 = a[k, i], a[k + 1, i], a[k + 2, i], a[k + 3, i]
                k0, k1, k2, k3 = _U(k), _U(k + 1), _U(k + 2), _U(k + 3)
                for j in range(count):
                    at = _U(start + j)
                    sums[_U(j)] += (f0 * b[k0, at] + f1 * b[k1, at]) + (
                        f2 * b[k2, at] + f3 * b[k3, at]
                    )
            for k in range(whole, rank):
                f0 = a[k, i]
                for j in range(count):
                    sums[_U(j)] += f0 * b[_U(k), _U(start + j)]
            for j in range(count):
                total[_U(i), _U(start + j)] += np.float32(sums[_U(j)] * unit) * sign


@kernel
def _scale_factors(
    u: np.ndarray,
    v: np.ndarray,
    noise: float,
    unit: float,
    a: np.ndarray,
    b: np.ndarray,
    shifts: np.ndarray,
) -> None:
    """Fill ``a`` (r, R) and ``b`` (r, C), in parts 1 / ``unit`` of a whole number, and shifts."""
    rows, columns, rank = u.shape[0], v.shape[0], shifts.size
    # Steps du and dv add du² E[v²] / 12 + dv² E[u²] / 12; we split it in the ratio of R and C.
    sizes, ratios = np.empty(rank), np.empty(rank)
    for k in range(rank):
        square_u, square_v = 0.0, 0.0
        for i in range(rows):
            square_u += np.float64(u[i, k]) * np.float64(u[i, k])
        for j in range(columns):
            square_v += np.float64(v[j, k]) * np.float64(v[j, k])
        size_u, size_v = math.sqrt(square_u / rows + 1e-30), math.sqrt(square_v / columns + 1e-30)
        sizes[k], ratios[k] = size_u * size_v, size_u / size_v
    of_both = math.sqrt(rows * columns) / (rows + columns)
    shares, spent = np.empty(rank), 0.0
    for k in range(rank):
        half = of_both / sizes[k]
        shifts[k] = np.int32(math.ceil(-math.log2(12 * noise / rank * half)))
        shares[k] = 2.0 ** -np.float64(shifts[k]) / (12 * half)
        spent += shares[k]
    # All shares fit, each being the largest power of two below; from the least on we double
    # them as long as they do.
    for _ in range(rank):
        least = 0
        for k in range(1, rank):
            if shares[k] < shares[least]:
                least = k
        spent += shares[least]
        if spent > noise:
            break
        shares[least] = math.inf
        shifts[least] -= 1
    for k in range(rank):
        tilt = math.sqrt(ratios[k] * math.sqrt(rows / columns))
        whole = unit * 2.0 ** (np.float64(shifts[k]) / 2)
        to_a, to_b = np.float32(whole / tilt), np.float32(whole * tilt)
        for i in range(rows):
            a[k, i] = u[i, k] * to_a
        for j in range(columns):
            b[k, j] = v[j, k] * to_b


def levels_of_factors(
    u: NDArray[np.float32], v: NDArray[np.float32], noise: float, unit: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
    """Scale as `scaled_factors` does, ``unit`` times as large: (r, R), (r, C) and shifts (r,)."""
    rank = u.shape[1]
    a, b = np.empty((rank, len(u)), np.float32), np.empty((rank, len(v)), np.float32)
    shifts = np.empty(rank, np.int32)
    _scale_factors(u, v, noise, unit, a, b, shifts)
    return a, b, shifts


@kernel
def _orthonormal(y: np.ndarray) -> np.ndarray:
    """Make the columns orthonormal; those that depend on others become short."""
    rows, width = y.shape
    largest = np.float32(1e-30)
    for i in range(rows):
        for j in range(width):
            largest = max(largest, abs(y[i, j]))
    scale = 1 / np.float64(largest)
    gram = np.zeros((width, width))
    row = np.empty(width)
    for i in range(rows):
        for j in range(width):
            row[j] = np.float64(y[i, j]) * scale
        for k in range(width):
            factor = row[k]
            for j in range(width):
                gram[_U(k), _U(j)] += factor * row[_U(j)]
    # A little on the diagonal leaves columns that depend on others near zero.
    trace = 1e-30
    for k in range(width):
        trace += gram[k, k]
    for k in range(width):
        gram[k, k] += 1e-8 * trace
    # Cholesky's factor, and its inverse transposed: a column of it is a row of the inverse.
    turn = np.zeros((width, width))
    for k in range(width):
        pivot = 1 / math.sqrt(max(gram[k, k], 1e-300))
        for j in range(k, width):
            gram[_U(k), _U(j)] *= pivot
        for i in range(k + 1, width):
            factor = gram[k, i]
            for j in range(i, width):
                gram[_U(i), _U(j)] -= factor * gram[_U(k), _U(j)]
    for k in range(width):
        turn[k, k] = 1.0
        for i in range(k, width):
            factor = turn[k, i] / gram[i, i]
            turn[k, i] = factor
            for j in range(i + 1, width):
                turn[_U(k), _U(j)] -= factor * gram[_U(i), _U(j)]
    q = np.empty((rows, width), np.float32)
    for i in range(rows):
        for j in range(width):
            row[j] = 0.0
        for k in range(width):
            factor = np.float64(y[i, k]) * scale
            for j in range(width):
                row[_U(j)] += factor * turn[_U(k), _U(j)]
        for j in range(width):
            q[i, j] = row[j]
    return q


def _eigen(gram: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give eigenvalues, largest first and none below zero, and eigenvectors."""
    values, vectors = np.linalg.eigh(gram.astype(np.float64))
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


def _sketch(x: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Add up the rows in ``width`` groups, each row with a pseudo-random but fixed sign.

    As good a start as a dense random matrix here, and one addition for each entry.
    """
    rows, columns = x.shape
    if width == rows:
        return x
    signed = x * _signs(rows)
    whole = rows - rows % width
    sketch: NDArray[np.float32] = signed[:whole].reshape(-1, width, columns).sum(0)
    sketch[: rows - whole] += signed[whole:]
    return sketch


@lru_cache(maxsize=64)
def _signs(rows: int) -> NDArray[np.float32]:
    draws = np.random.Generator(np.random.PCG64(1)).integers(0, 2, (rows, 1), np.int8)
    return (2 * draws - 1).astype(np.float32)
