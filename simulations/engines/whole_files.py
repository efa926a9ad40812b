"""Files that are written and read whole, at once, and over the pages of what stood there."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import numpy as np

from simulations.engines.channel import Part

_PIECES_AT_ONCE = 1000  # systems take 1024


def write_file(path: str, data: bytes | Sequence[Part]) -> None:
    """Write a whole file, over the pages of what stood there: a new file takes twice as long.

    What comes in pieces is not joined first.
    """
    pieces = [data] if isinstance(data, bytes) else data
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for first in range(0, len(pieces), _PIECES_AT_ONCE):
            _write_pieces(file, pieces[first : first + _PIECES_AT_ONCE])
        os.ftruncate(file, sum(map(len, pieces)))
    finally:
        os.close(file)


def _write_pieces(file: int, pieces: Sequence[Part]) -> None:
    views = [memoryview(piece) for piece in pieces if piece]
    while views:
        written = os.writev(file, views)
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views:
            views[0] = views[0][written:]


def read_buffer(path: str) -> np.ndarray:
    """Read a whole file at once into new memory, as bytes (uint8)."""
    file = os.open(path, os.O_RDONLY)
    try:
        buffer = np.empty(os.fstat(file).st_size, np.uint8)
        read = os.readv(file, [buffer.data]) if buffer.size else 0
    finally:
        os.close(file)
    if read != buffer.size:
        raise OSError(errno.EIO, "a file of client states is shorter than it was", path)
    return buffer


def read_file(path: str) -> bytes:
    """Read a whole file at once."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, os.fstat(file).st_size)
    finally:
        os.close(file)
