"""Random rotations of blocks in place; what is done, and why, is told in `fedcompress.rotation`."""

import numpy as np

from fedcompress.kernels.hadamard import copy, walsh_hadamard
from fedcompress.kernels.jit import kernel
from fedcompress.kernels.splitmix import word


@kernel
def rotate(
    x: np.ndarray, spare: np.ndarray, rounds: int, stride: int, seed: np.uint64, first: int
) -> None:
    """Rotate one block.

    Parameters
    ----------
    x, spare : numpy.ndarray
        float32, shape (m,): the block, changed in place, and room for as many entries.
    rounds : int
        How often signs are flipped and the transform is taken.
    stride : int
        Between neighbours of a shuffled block, coprime to m.
    seed, first : int
        Seed of the array, and the number of the first word for this block.
    """
    size, scale, words = _window(x.size)
    number = first
    for i in range(rounds):
        if size < x.size and i > 0:
            _shuffle(x, spare, stride)
        _flip(x[:size], scale, seed, number)
        walsh_hadamard(x[:size], spare)
        number += words
        if size < x.size:
            _flip(x[x.size - size :], scale, seed, number)
            walsh_hadamard(x[x.size - size :], spare)
            number += words


@kernel
def rotate_back(
    x: np.ndarray, spare: np.ndarray, rounds: int, stride: int, seed: np.uint64, first: int
) -> None:
    """Undo `rotate`."""
    size, scale, words = _window(x.size)
    number = first + (rounds if size == x.size else 2 * rounds) * words
    for i in range(rounds):
        if size < x.size:
            number -= words
            walsh_hadamard(x[x.size - size :], spare)
            _flip(x[x.size - size :], scale, seed, number)
        number -= words
        walsh_hadamard(x[:size], spare)
        _flip(x[:size], scale, seed, number)
        if size < x.size and i < rounds - 1:
            _shuffle_back(x, spare, stride)


@kernel
def _window(size: int) -> tuple[int, np.float32, int]:
    """Give the largest power of two up to ``size``, its −1/2th power, and its words of signs."""
    window = 1
    scale = 1.0
    while 2 * window <= size:
        window *= 2
        scale *= 0.5
    # The root of a power of two is rounded alike on every machine.
    return window, np.float32(np.sqrt(scale)), (window + 63) // 64


@kernel
def _flip(x: np.ndarray, scale: np.float32, seed: np.uint64, first: int) -> None:
    for i in range((x.size + 63) // 64):
        signs = word(seed, first + i)
        part = x[64 * i : 64 * i + 64]
        for j in range(part.size):
            part[j] *= -scale if signs >> np.uint64(j) & np.uint64(1) else scale


@kernel
def _shuffle(x: np.ndarray, spare: np.ndarray, stride: int) -> None:
    at = 0
    for i in range(x.size):
        spare[i] = x[at]
        at += stride
        if at >= x.size:
            at -= x.size
    copy(spare, x)


@kernel
def _shuffle_back(x: np.ndarray, spare: np.ndarray, stride: int) -> None:
    at = 0
    for i in range(x.size):
        spare[at] = x[i]
        at += stride
        if at >= x.size:
            at -= x.size
    copy(spare, x)
