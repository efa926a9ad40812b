"""Random rotations of arrays of any length, without padding.

An array is cut into blocks. A block whose length m is a power of two is rotated by rounds of
random signs and a Walsh–Hadamard transform (Ailon & Chazelle, 2009; two rounds and more come
near a uniformly random rotation whatever the input, Andoni et al., 2015). One of another length
is rotated through two windows of the largest power of two p < m, the first p entries and then
the last p, each orthogonal by itself, and shuffled between rounds so that all parts mix. Blocks
are so long that the last one, of `BLOCK` to 2 `BLOCK` − 1 entries, takes what is left over.

This file holds the plan, and the rotation in torch operations for arrays on any device. For
arrays on the host `fedcompress.kernels.rotation` does the same faster, to the same bits.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fedcompress.splitmix import random_words

BLOCK = 1 << 14
# Fewer entries know too few rotations for the mean of the decoded ones to be the array.
LEAST = 16
_MANY = 1024  # from here on two rounds leave no bias that 10,000 draws show; below it takes six
_WORD = 64


@lru_cache(maxsize=64)
def blocks_of(n: int) -> np.ndarray:
    """Plan the blocks of an array of ``n`` entries.

    Returns
    -------
    numpy.ndarray
        int64, a row for each block: its first entry, the entry behind its last, rounds, the
        stride of its shuffle, and the number of its first random word. Blocks are alike but for
        the last; fewer than `LEAST` entries are blocks of one, which no rotation changes.
    """
    if n < LEAST:
        starts = np.arange(n)
        rounds = 0
    else:
        starts = np.arange(max(1, n // BLOCK)) * BLOCK
        rounds = 2
    blocks = np.ones((starts.size, 5), np.int64)
    blocks[:, 0] = starts
    blocks[:, 1] = np.append(starts[1:], n)
    blocks[:, 2] = rounds
    blocks[:, 4] = starts // _WORD * rounds
    if n >= LEAST:
        last = n - int(starts[-1])
        blocks[-1, 2] = 2 if last >= _MANY else 6
        blocks[-1, 3] = _stride(last)
    blocks.flags.writeable = False
    return blocks


def rows_of(x: Tensor) -> list[Tensor]:
    """View a flat array as its blocks, a row each: the alike ones, then a longer last one."""
    if x.numel() < LEAST:
        return [x.reshape(-1, 1)]
    last = int(blocks_of(x.numel())[-1, 0])
    both = x[:last].reshape(-1, BLOCK), x[last:].reshape(1, -1)
    return [rows for rows in both if rows.numel()]


def rotate(x: Tensor, seed: int) -> Tensor:
    """Rotate a flat float32 array on any device; every block keeps its norm."""
    return _by_block(x, seed, back=False)


def rotate_back(x: Tensor, seed: int) -> Tensor:
    """Undo `rotate` of the same seed."""
    return _by_block(x, seed, back=True)


def walsh_hadamard(x: Tensor) -> Tensor:
    """Transform the rows of a matrix, whose length is a power of two, by the matrix of ±1."""
    rows, n = x.shape
    half = n // 2
    while half:
        pairs = x.reshape(rows, -1, 2, half)
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        x = torch.stack([a + b, a - b], 2).reshape(rows, n)
        half //= 2
    return x


def _by_block(x: Tensor, seed: int, back: bool) -> Tensor:
    if x.numel() < LEAST:
        return x.clone()
    blocks = blocks_of(x.numel())
    plans = (blocks[:-1], blocks[-1:])[-len(rows_of(x)) :]
    turned = [
        _rotate_rows(rows, plan, seed, back) for rows, plan in zip(rows_of(x), plans, strict=True)
    ]
    return torch.cat([rows.reshape(-1) for rows in turned])


def _rotate_rows(x: Tensor, blocks: np.ndarray, seed: int, back: bool) -> Tensor:
    """Rotate blocks of one length, a row each."""
    m = x.shape[1]
    window = 1 << (m.bit_length() - 1)
    words = -(-window // _WORD)
    first = torch.from_numpy(blocks[:, 4].copy()).to(x.device)
    order = torch.arange(m, device=x.device) * int(blocks[0, 3]) % m
    offsets = (0,) if window == m else (0, m - window)
    steps = [(r, offset) for r in range(int(blocks[0, 2])) for offset in offsets]
    x = x.clone()
    for i, (r, offset) in reversed(list(enumerate(steps))) if back else enumerate(steps):
        shuffled = r > 0 and offset == 0 and window < m
        if shuffled and not back:
            x = x[:, order]
        signs = _signs(seed, first + i * words, window)
        part = x[:, offset : offset + window]
        turned = walsh_hadamard(part) * signs if back else walsh_hadamard(part * signs)
        x[:, offset : offset + window] = turned
        if shuffled and back:
            x = x[:, order.argsort()]
    return x


def _signs(seed: int, first: Tensor, window: int) -> Tensor:
    """Draw ± the −1/2th power of the window for each row, from the words that begin at first."""
    count = -(-window // _WORD)
    words = random_words(seed, first[:, None] + torch.arange(count, device=first.device))
    bits = words[:, :, None] >> torch.arange(_WORD, device=first.device) & 1
    bits = bits.reshape(first.numel(), -1)[:, :window].to(torch.float32)
    return (1 - 2 * bits) * math.sqrt(1 / window)


def _stride(m: int) -> int:
    """Choose a stride coprime to ``m`` and near its golden section, which mixes evenly."""
    stride = max(1, round(0.618 * m))
    while math.gcd(stride, m) != 1:
        stride += 1
    return stride
