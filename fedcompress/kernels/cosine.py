"""Discrete cosine transform of the blocks of an array: energy kept, same bits on every machine.

Ahmed, Natarajan & Rao (1974), type II, orthonormal, along both axes of every (h, w) block.
Sums are formed in one order, by additions and multiplications in float32 that a compiler may
not fuse or reorder, and run over several blocks at once so that they fill vector registers.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from fedcompress.kernels.jit import kernel

MOST = 64  # longest side of a block
_LANES, _OF_SMALL, _SMALL = 64, 128, 64  # blocks transformed at once; of so few entries
_U = np.uint64  # of indices: no one asks whether they count from the end
_ROOTS = np.sqrt(np.array([1 / 3, 1 / 2, 1 / 6, 2 / 3])).astype(np.float32)
_A, _B, _C, _D = _ROOTS[0], _ROOTS[1], _ROOTS[2], _ROOTS[3]


def transform(x: NDArray[np.float32], h: int, w: int, scale: float) -> NDArray[np.float32]:
    """Transform ``x * scale``, whose rows are blocks of ``h * w`` entries one after another."""
    out = np.empty_like(x)
    if h == w == 3:
        _transform_3(x.reshape(-1), out.reshape(-1), np.float32(scale))
    else:
        _any(x, out, h, w, scale, back=False)
    return out


def inverse(y: NDArray[np.float32], h: int, w: int, scale: float) -> NDArray[np.float32]:
    """Transform back, then multiply by ``scale``."""
    out = np.empty_like(y)
    if h == w == 3:
        _inverse_3(y.reshape(-1), out.reshape(-1), np.float32(scale))
    else:
        _any(y, out, h, w, scale, back=True)
    return out


def _any(
    x: NDArray[np.float32], out: NDArray[np.float32], h: int, w: int, scale: float, back: bool
) -> None:
    most = _OF_SMALL if h * w <= _SMALL else _LANES
    lanes = min(most, (x.size // (h * w) + 7) // 8 * 8)
    of_h, of_w = (_basis(h), _plan(h, back), h), (_basis(w), _plan(w, back), w)
    flat = x.reshape(-1)
    bits = flat.view(np.uint32)
    _blocks(flat, bits, out.reshape(-1), *of_h, *of_w, np.float32(scale), back, lanes)


@cache
def _basis(n: int) -> NDArray[np.float32]:
    """Give the rows of the transform of length ``n``, one after another.

    No entry lies near the middle of two float32 numbers for n <= 64, so all machines round alike.
    """
    k, j = np.arange(n)[:, None], np.arange(n)[None]
    waves = np.cos(np.pi / (2 * n) * (k * (2 * j + 1))) * np.sqrt(np.where(k == 0, 1, 2) / n)
    return np.ascontiguousarray(waves.astype(np.float32)).reshape(-1)


@cache
def _plan(n: int, back: bool) -> NDArray[np.int64]:
    """Say for each of ``n`` sums what it adds: first entry, stride, first weight, stride, count."""
    low = n // 2
    high = n - low
    plan = []
    for k in range(n):
        if back:  # columns of the even waves, then of the odd
            odd = int(k >= high)
            plan.append((odd, 2, n + k - high if odd else k, 2 * n, low if odd else high))
        else:  # wave k, of which the odd ones take differences
            odd = k & 1
            plan.append((odd * high, 1, k * n, 1, low if odd else high))
    return np.array(plan, np.int64).reshape(-1)


@kernel
def _blocks(
    x: np.ndarray,
    bits: np.ndarray,
    out: np.ndarray,
    along_h: np.ndarray,
    plan_h: np.ndarray,
    h: int,
    along_w: np.ndarray,
    plan_w: np.ndarray,
    w: int,
    scale: np.float32,
    back: bool,
    lanes: int,
) -> None:
    """Transform blocks, or back, ``lanes`` of them side by side.

    Compilers make vector code of loops over lanes as long as they do not know how many there are.

    Even waves are symmetric and odd ones are not, so that sums and differences of opposite
    entries halve the multiplications. They stand behind the entries of the blocks, and so do sums
    that go on, where they stay in the first-level cache. Blocks of zeros, of which sparse updates
    are full, stay such blocks.
    """
    size = h * w
    firsts = np.empty(x.size // size, np.int64)  # of blocks that hold anything
    blocks = 0
    for first in range(0, x.size, size):
        total = np.uint32(0)
        for p in range(size):
            total |= bits[_U(first + p)]
        if total:
            firsts[blocks] = first
            blocks += 1
        else:
            for p in range(size):
                out[_U(first + p)] = np.float32(0)
    folded, waves = size, size + max(h, w)
    work = np.zeros((size + 2 * max(h, w)) * lanes, np.float32)
    for start in range(0, blocks, lanes):
        count = min(lanes, blocks - start)
        for p in range(size):
            for lane in range(count):
                work[_U(p * lanes + lane)] = x[_U(firsts[start + lane] + p)] * scale
        for line in range(h + w):
            # Rows of the blocks, then columns.
            basis, plan, n, first, stride = along_w, plan_w, w, line * w, 1
            if line >= h:
                basis, plan, n, first, stride = along_h, plan_h, h, line - h, w
            last, second = first + (n - 1) * stride, folded + n - n // 2
            if not back:
                _butterfly(work, first, stride, last, -stride, folded, 1, second, 1, n, lanes)
            base, unit, to = (first, stride, folded) if back else (folded, 1, waves)
            _weighted_sums(work, base, unit, basis, plan, n, to, lanes)
            if back:
                _butterfly(work, folded, 1, second, 1, first, stride, last, -stride, n, lanes)
                continue
            for k in range(n):
                here, there = _U((waves + k) * lanes), _U((first + k * stride) * lanes)
                for lane in range(lanes):
                    work[there + _U(lane)] = work[here + _U(lane)]
        for lane in range(count):
            first = firsts[start + lane]
            for p in range(size):
                out[_U(first + p)] = work[_U(p * lanes + lane)]


@kernel
def _butterfly(
    work: np.ndarray,
    here: int,
    along_here: int,
    there: int,
    along_there: int,
    total: int,
    along_total: int,
    rest: int,
    along_rest: int,
    n: int,
    lanes: int,
) -> None:
    """Give sums and differences of two halves of ``n`` entries, and the one in the middle."""
    for j in range(n // 2):
        p, q = _U((here + j * along_here) * lanes), _U((there + j * along_there) * lanes)
        r, s = _U((total + j * along_total) * lanes), _U((rest + j * along_rest) * lanes)
        for lane in range(lanes):
            a, b = work[p + _U(lane)], work[q + _U(lane)]
            work[r + _U(lane)] = a + b
            work[s + _U(lane)] = a - b
    if n % 2:
        p = _U((here + n // 2 * along_here) * lanes)
        r = _U((total + n // 2 * along_total) * lanes)
        for lane in range(lanes):
            work[r + _U(lane)] = work[p + _U(lane)]


@kernel
def _weighted_sums(
    work: np.ndarray,
    base: int,
    unit: int,
    weights: np.ndarray,
    plan: np.ndarray,
    n: int,
    target: int,
    lanes: int,
) -> None:
    """Add up weighted entries as planned, four at a time."""
    for k in range(n):
        first, stride = base + plan[5 * k] * unit, plan[5 * k + 1] * unit
        at, step, count = plan[5 * k + 2], plan[5 * k + 3], plan[5 * k + 4]
        to = _U((target + k) * lanes)
        p0 = _U(first * lanes)
        f0 = weights[at]
        for lane in range(lanes):
            work[to + _U(lane)] = f0 * work[p0 + _U(lane)]
        whole = 1 + (count - 1) // 4 * 4
        for i in range(1, whole, 4):
            w0 = at + i * step
            f0, f1 = weights[w0], weights[w0 + step]
            f2, f3 = weights[w0 + 2 * step], weights[w0 + 3 * step]
            p0, p1 = _U((first + i * stride) * lanes), _U((first + (i + 1) * stride) * lanes)
            p2, p3 = _U((first + (i + 2) * stride) * lanes), _U((first + (i + 3) * stride) * lanes)
            for lane in range(lanes):
                work[to + _U(lane)] += (f0 * work[p0 + _U(lane)] + f1 * work[p1 + _U(lane)]) + (
                    f2 * work[p2 + _U(lane)] + f3 * work[p3 + _U(lane)]
                )
        for i in range(whole, count):
            f0 = weights[at + i * step]
            p0 = _U((first + i * stride) * lanes)
            for lane in range(lanes):
                work[to + _U(lane)] += f0 * work[p0 + _U(lane)]


@kernel
def _transform_3(x: np.ndarray, out: np.ndarray, scale: np.float32) -> None:
    # By far the commonest kernel of a convolution is 3 by 3: six times faster spelled out.
    t = np.empty(9, np.float32)
    for first in range(0, x.size, 9):
        for i in range(3):
            a, b, c = x[first + 3 * i], x[first + 3 * i + 1], x[first + 3 * i + 2]
            s = a + c
            t[i] = (s + b) * _A
            t[3 + i] = (a - c) * _B
            t[6 + i] = s * _C - b * _D
        for k in range(3):
            a, b, c = t[3 * k] * scale, t[3 * k + 1] * scale, t[3 * k + 2] * scale
            s = a + c
            out[first + k] = (s + b) * _A
            out[first + 3 + k] = (a - c) * _B
            out[first + 6 + k] = s * _C - b * _D


@kernel
def _inverse_3(x: np.ndarray, out: np.ndarray, scale: np.float32) -> None:
    t = np.empty(9, np.float32)
    for first in range(0, x.size, 9):
        for k in range(3):
            a, b, c = x[first + k] * _A, x[first + 3 + k] * _B, x[first + 6 + k]
            s = a + c * _C
            t[3 * k] = s + b
            t[3 * k + 1] = a - c * _D
            t[3 * k + 2] = s - b
        for i in range(3):
            a, b, c = t[i] * _A, t[3 + i] * _B, t[6 + i]
            s = a + c * _C
            out[first + 3 * i] = (s + b) * scale
            out[first + 3 * i + 1] = (a - c * _D) * scale
            out[first + 3 * i + 2] = (s - b) * scale
