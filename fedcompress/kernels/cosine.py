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
_LANES = 64  # blocks transformed at once
_ROOTS = np.sqrt(np.array([1 / 3, 1 / 2, 1 / 6, 2 / 3])).astype(np.float32)
_A, _B, _C, _D = _ROOTS[0], _ROOTS[1], _ROOTS[2], _ROOTS[3]


def transform(x: NDArray[np.float32], h: int, w: int, scale: float) -> NDArray[np.float32]:
    """Transform ``x * scale``, whose rows are blocks of ``h * w`` entries one after another."""
    out = np.empty_like(x)
    if h == w == 3:
        _transform_3(x.reshape(-1), out.reshape(-1), np.float32(scale))
    else:
        _blocks(
            x.reshape(-1), out.reshape(-1), _basis(h), h, _basis(w), w, np.float32(scale), False
        )
    return out


def inverse(y: NDArray[np.float32], h: int, w: int, scale: float) -> NDArray[np.float32]:
    """Transform back, then multiply by ``scale``."""
    out = np.empty_like(y)
    if h == w == 3:
        _inverse_3(y.reshape(-1), out.reshape(-1), np.float32(scale))
    else:
        _blocks(y.reshape(-1), out.reshape(-1), _basis(h), h, _basis(w), w, np.float32(scale), True)
    return out


@cache
def _basis(n: int) -> NDArray[np.float32]:
    """Give the rows of the transform of length ``n``, one after another.

    No entry lies near the middle of two float32 numbers for n <= 64, so all machines round alike.
    """
    k, j = np.arange(n)[:, None], np.arange(n)[None]
    waves = np.cos(np.pi / (2 * n) * (k * (2 * j + 1))) * np.sqrt(np.where(k == 0, 1, 2) / n)
    return np.ascontiguousarray(waves.astype(np.float32)).reshape(-1)


@kernel
def _blocks(
    x: np.ndarray,
    out: np.ndarray,
    along_h: np.ndarray,
    h: int,
    along_w: np.ndarray,
    w: int,
    scale: np.float32,
    back: bool,
) -> None:
    size = h * w
    blocks = x.size // size
    a = np.empty((size, _LANES), np.float32)
    b = np.empty((size, _LANES), np.float32)
    folded = np.empty((max(h, w), _LANES), np.float32)
    for start in range(0, blocks, _LANES):
        count = min(_LANES, blocks - start)
        lanes = (count + 7) // 8 * 8
        for lane in range(count):
            first = (start + lane) * size
            for p in range(size):
                a[p, lane] = x[first + p] * scale
        for lane in range(count, lanes):
            for p in range(size):
                a[p, lane] = np.float32(0)
        for i in range(h):
            _line(a, b, folded, along_w, w, i * w, 1, back, lanes)
        for j in range(w):
            _line(b, a, folded, along_h, h, j, w, back, lanes)
        for lane in range(count):
            first = (start + lane) * size
            for p in range(size):
                out[first + p] = a[p, lane]


@kernel
def _line(
    source: np.ndarray,
    target: np.ndarray,
    folded: np.ndarray,
    basis: np.ndarray,
    n: int,
    first: int,
    stride: int,
    back: bool,
    lanes: int,
) -> None:
    """Transform the entries ``first + j * stride``, or back.

    Even waves are symmetric and odd ones are not, so that sums and differences of opposite
    entries halve the multiplications.
    """
    low = n // 2
    high = n - low
    if back:
        for j in range(n):
            odd = int(j >= high)
            wave = 2 * n - 1 - j if odd else j  # column j of the even rows, n − 1 − j of the odd
            count = low if odd else high
            _weighted_sum(
                source,
                first + odd * stride,
                2 * stride,
                basis,
                wave,
                2 * n,
                count,
                folded,
                j,
                lanes,
            )
        for j in range(low):
            here, there = first + j * stride, first + (n - 1 - j) * stride
            for lane in range(lanes):
                total, rest = folded[j, lane], folded[n - 1 - j, lane]
                target[here, lane] = total + rest
                target[there, lane] = total - rest
        if n % 2:
            for lane in range(lanes):
                target[first + low * stride, lane] = folded[low, lane]
        return
    for j in range(low):
        here, there = first + j * stride, first + (n - 1 - j) * stride
        for lane in range(lanes):
            folded[j, lane] = source[here, lane] + source[there, lane]
            folded[n - 1 - j, lane] = source[here, lane] - source[there, lane]
    if n % 2:
        for lane in range(lanes):
            folded[low, lane] = source[first + low * stride, lane]
    for k in range(n):
        odd = k & 1
        start, along = (n - 1, -1) if odd else (0, 1)
        count = low if odd else high
        to = first + k * stride
        _weighted_sum(folded, start, along, basis, k * n, 1, count, target, to, lanes)


@kernel
def _weighted_sum(
    source: np.ndarray,
    first: int,
    stride: int,
    weights: np.ndarray,
    at: int,
    step: int,
    count: int,
    target: np.ndarray,
    to: int,
    lanes: int,
) -> None:
    """Add up ``weights[at + i * step] * source[first + i * stride]``, four at a time."""
    factor = weights[at]
    for lane in range(lanes):
        target[to, lane] = factor * source[first, lane]
    whole = 1 + (count - 1) // 4 * 4
    for i in range(1, whole, 4):
        w0 = at + i * step
        f0, f1 = weights[w0], weights[w0 + step]
        f2, f3 = weights[w0 + 2 * step], weights[w0 + 3 * step]
        p0, p1 = first + i * stride, first + (i + 1) * stride
        p2, p3 = first + (i + 2) * stride, first + (i + 3) * stride
        for lane in range(lanes):
            target[to, lane] += (f0 * source[p0, lane] + f1 * source[p1, lane]) + (
                f2 * source[p2, lane] + f3 * source[p3, lane]
            )
    for i in range(whole, count):
        factor = weights[at + i * step]
        p0 = first + i * stride
        for lane in range(lanes):
            target[to, lane] += factor * source[p0, lane]


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
