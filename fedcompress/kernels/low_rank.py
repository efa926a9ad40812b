"""Low-rank approximation with rounded factors, whose product is the same on every machine.

Halko, Martinsson & Tropp (2011), "Finding structure with randomness", with a fixed start.
"""

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
    q = _orthonormal(x @ _sketch(x, width).T)
    for _ in range(iterations - 1):
        q = _orthonormal(x @ (q.T @ x).T)
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
    rows, columns, rank = len(u), len(v), u.shape[1]
    size_u = np.sqrt(np.maximum(np.einsum("ik,ik->k", u, u) / rows, 1e-30)).astype(np.float64)
    size_v = np.sqrt(np.maximum(np.einsum("ik,ik->k", v, v) / columns, 1e-30)).astype(np.float64)
    # Steps du and dv add du² E[v²] / 12 + dv² E[u²] / 12; we split it in the ratio of R and C.
    ratio = np.sqrt(rows * columns)
    half = ratio / (rows + columns) / (size_u * size_v)
    shifts = np.ceil(-np.log2(12 * noise / max(rank, 1) * half))
    shares = np.exp2(-shifts) / (12 * half)
    # All shares fit, each being the largest power of two below; from the least on we double
    # them as long as they do.
    order = np.argsort(shares)
    doubled = order[shares.sum() + np.cumsum(shares[order]) <= noise]
    shifts[doubled] -= 1
    tilt = np.sqrt(size_u / size_v * np.sqrt(rows / columns))
    whole = np.exp2(shifts / 2)
    a = u * (whole / tilt).astype(np.float32)
    b = v * (whole * tilt).astype(np.float32)
    return a, b, shifts.astype(np.int32)


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


def _orthonormal(y: NDArray[np.float32]) -> NDArray[np.float32]:
    """Make the columns orthonormal; those that depend on others become short."""
    y = y * np.float32(1 / max(float(np.abs(y).max(initial=0.0)), 1e-30))
    exact = y.astype(np.float64)
    gram = exact.T @ exact
    # A little on the diagonal leaves columns that depend on others near zero.
    gram[np.diag_indices_from(gram)] += 1e-8 * max(float(np.trace(gram)), 1e-30)
    inverse = np.linalg.inv(np.linalg.cholesky(gram))
    return y @ inverse.T.astype(np.float32)


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
