"""Numbers and streams that a decoder does not expect."""

from __future__ import annotations

import numpy as np
import torch

from fedcompress.streams import (
    FloatForm,
    Floats,
    Form,
    IndexForm,
    IndexSet,
    Scale,
    ScaleForm,
    Seed,
    SeedForm,
    Stream,
    SymbolForm,
    Symbols,
)

_EDGES = [0, 1, 2, 3, 7, 8, 9, 31, 32, 33, 50, 51, 63, 64, 65, 120, 121, 127, 128, 255, 256, 4095]
_EDGES += [4096, 4097, (1 << 15) - 1, 1 << 15, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
_EDGES += [1 << 32, (1 << 40) - 1]
_HUGE = [1 << 40, 1 << 53, (1 << 60) - 1, (1 << 62) - 1]
_ODD_FLOATS = [0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, 3e38, -3.4e38, np.inf, -np.inf, np.nan]


def edge(draw: np.random.Generator, most: int = (1 << 40) - 1) -> int:
    """Give one integer where something ends, of either sign, of magnitude up to ``most``."""
    pool = _EDGES if draw.random() < 0.8 else _EDGES + _HUGE
    value = min(pool[int(draw.integers(len(pool)))], most)
    return -value if draw.random() < 0.3 else value


def count(draw: np.random.Generator) -> int:
    """Give a length or count that may be claimed."""
    return abs(edge(draw, (1 << 62) - 1)) if draw.random() < 0.6 else int(draw.integers(0, 200))


def integers(draw: np.random.Generator, size: int, most: int = (1 << 40) - 1) -> np.ndarray:
    """Give integers (int64) in one of several styles: plausible ones, often with an edge."""
    style = int(draw.integers(9))
    if size <= 3 and style < 8:
        out = draw.integers(0, 4 if style < 6 else 121, size)
    elif style == 0:
        out = np.zeros(size, np.int64)
    elif style == 1:
        out = np.full(size, int(draw.integers(-3, 4)))
    elif style == 2:
        out = draw.choice([0, 1, 2, 3], size, p=[0.85, 0.08, 0.04, 0.03])
    elif style == 7:
        out = (draw.random(size) < draw.choice([0.03, 0.1, 0.5])).astype(np.int64)
    elif style == 3:
        out = draw.geometric(0.5, size) - 1
    elif style == 4:
        out = (draw.geometric(0.3, size) - 1) * draw.choice([-1, 1], size)
    else:
        reach = int(draw.choice([1, 1, 1, 2, 2, 3, 8, 8, 50, 63, 120, 300, 40000]))
        out = draw.integers(-reach if draw.random() < 0.5 else 0, reach + 1, size)
    out = out.astype(np.int64)
    if size and draw.random() < 0.1:
        out[int(draw.integers(size))] = edge(draw, most)
    return out


def stream(form: Form, draw: np.random.Generator) -> Stream:
    """Give a stream of this form whose values no encoder may have chosen."""
    match form:
        case SymbolForm(shape, states):
            return Symbols(torch.from_numpy(_symbols(draw, shape)), states)
        case IndexForm(n, shape):
            return IndexSet(torch.from_numpy(_positions(draw, n, shape)), n, shape)
        case FloatForm(shape, dtype):
            return Floats(_floats(draw, shape, dtype))
        case ScaleForm(length, dtype):
            return Scale(_floats(draw, (length,), dtype))
        case SeedForm():
            return Seed(
                int(draw.choice([0, 1, (1 << 63) - 1]))
                if draw.random() < 0.3
                else int(draw.integers(0, 1 << 64, dtype=np.uint64))
            )
    raise TypeError(f"no hostile stream for {form}")


def _symbols(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64))
    out = integers(draw, size, 1 << 31).clip(-(1 << 31), (1 << 31) - 1).reshape(shape)
    if size < 10 and draw.random() < 0.3:  # a few numbers may be the bits of others
        out = draw.integers(-(1 << 15), 1 << 16, shape)
    if len(shape) > 1 and draw.random() < 0.3:
        out[draw.random(shape[0]) < 0.5] = 0
    if draw.random() < 0.05:
        out[...] = draw.choice([-(1 << 31), (1 << 31) - 1, -(1 << 31) + 1])
    return out.astype(np.int32)


def _positions(draw: np.random.Generator, n: int, shape: tuple[int, ...]) -> np.ndarray:
    if n == 0:
        return np.zeros(0, np.int64)
    sizes = [0, 1, 2, 31, 32, 33, 40, n // 50, n // 13, n // 11, n // 2, n - 1, n]
    size = min(max(int(draw.choice(sizes)), 0), n)
    if len(shape) > 1 and shape[0] and draw.random() < 0.5:
        odds = np.exp(2 * draw.standard_normal((shape[0], 1)))
        odds = odds * np.exp(2 * draw.standard_normal((1, n // shape[0])))
        order = np.argsort(-np.log(draw.random(odds.shape)).reshape(-1) / odds.reshape(-1))
        return np.sort(order[:size]).astype(np.int64)
    return np.sort(draw.choice(n, size, replace=False)).astype(np.int64)


def _floats(draw: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    style = int(draw.integers(5))
    x = torch.from_numpy(np.asarray(draw.standard_normal(shape)))
    if style == 1:
        x = torch.from_numpy(np.asarray(draw.choice(_ODD_FLOATS, shape)))
    elif style == 2:
        x = torch.full(shape, float(draw.choice(_ODD_FLOATS)), dtype=torch.float64)
    elif style == 3 and x.numel():
        raw = draw.integers(0, 256, x.numel() * dtype.itemsize).astype(np.uint8)
        return torch.from_numpy(raw).view(dtype).reshape(shape)
    elif style == 4:
        x = x.abs() * float(10.0 ** draw.integers(-40, 39))
    return x.to(dtype)
