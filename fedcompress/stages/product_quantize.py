"""Product quantization: short blocks of a row, each as one entry of a codebook of vectors."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.checks import check_integer
from fedcompress.errors import PayloadError
from fedcompress.stage import Numbers, Stage
from fedcompress.stages.blocks import largest
from fedcompress.streams import FloatForm, Floats, Forms, Layout, Streams

_SAMPLES_PER_CENTROID = 64
_ROUNDS = 5
_CHUNK = 4096  # blocks whose distances to every centroid are held at once, off the CPU


@dataclass(frozen=True, repr=False)
class ProductQuantize(Stage):
    """Send blocks of ``dim`` entries as the number of the nearest of ``k`` vectors. Biased.

    Gersho & Gray (1992), "Vector quantization and signal compression"; Jégou, Douze & Schmid
    (2011), "Product quantization for nearest neighbor search"; Stock et al. (2020), "And the
    bit goes down" (for the layers of a network). Blocks lie within a row (an index of the first
    dimension); a block cut short by the end of its row is compared by the entries it has. The
    codebook is found by k-means++ and Lloyd rounds on a sample that favours large blocks
    (Arthur & Vassilvitskii, 2007; Bachem, Lucic & Krause, 2018).

    Parameters
    ----------
    k : int
        Vectors in the codebook of an array, 2 to 4096, or as many as it has whole blocks.
    dim : int
        Entries of a block, 2 to 64, or as many as a row has.
    """

    name: ClassVar[str] = "product_quantize"
    gives: ClassVar[Numbers] = "symbols"

    k: int
    dim: int

    def __post_init__(self) -> None:
        check_integer(self.name, "k", self.k, 2, 4096)
        check_integer(self.name, "dim", self.dim, 2, 64)

    @property
    def unbiased(self) -> bool:
        """Rounding to the nearest vector is not."""
        return False

    def encode(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Streams]:
        """Give the vector of each block, small ones first; the side stream is the codebook."""
        grid = self._grid(Layout.of(x))
        narrow = _narrow(x.dtype)
        if x.numel() == 0:
            empty = x.new_zeros((0, grid.dim), dtype=narrow)
            return x.new_zeros((grid.rows, 0), dtype=torch.int16), (Floats(empty),)
        scale = float(largest(x.reshape(1, -1))) or 1.0
        rows = (x.reshape(grid.rows, grid.length) / scale).to(torch.float32)
        whole = rows[:, : grid.whole * grid.dim].reshape(-1, grid.dim)
        codebook = _trained(whole, grid.k, rng)
        symbols = _nearest(whole, codebook)
        codebook = _means(whole, symbols, codebook)
        rank = codebook.square().sum(1).argsort(stable=True)
        place = rank.argsort().to(torch.int16)
        symbols = place.index_select(0, symbols).reshape(grid.rows, grid.whole)
        if grid.whole < grid.blocks:
            rest = rows[:, grid.whole * grid.dim :]
            cut = _nearest(rest, codebook[rank, : rest.shape[1]])
            symbols = torch.cat([symbols, cut[:, None].to(torch.int16)], 1)
        limit = torch.finfo(narrow).max
        sent = codebook[rank].double().mul_(scale).clamp_(-limit, limit).to(narrow)
        return symbols, (Floats(sent),)

    def decode(self, x: Tensor, side: Streams, like: Layout) -> Tensor:
        """Look the vectors up."""
        (stream,) = side
        if not isinstance(stream, Floats):
            raise PayloadError(f"expected a codebook, got a stream of {stream.kind}")
        grid = self._grid(like)
        if x.numel() == 0:
            return torch.zeros(like.shape, dtype=like.dtype, device=like.device)
        if int(x.min()) < 0 or int(x.max()) >= grid.k:
            raise PayloadError(f"payload: a vector beyond the {grid.k} sent; it is damaged")
        vectors = torch.index_select(stream.values.to(like.dtype), 0, x.reshape(-1).int())
        return vectors.reshape(grid.rows, -1)[:, : grid.length].reshape(like.shape)

    def side_forms(self, like: Layout) -> Forms:
        """Expect the codebook."""
        grid = self._grid(like)
        return (FloatForm((grid.k, grid.dim), _narrow(like.dtype)),)

    def layout_after(self, like: Layout, side: Streams) -> Layout:
        """One symbol for each block."""
        del side
        grid = self._grid(like)
        return Layout((grid.rows, grid.blocks), torch.int32, like.device)

    def _grid(self, like: Layout) -> "_Grid":
        rows = like.shape[0] if len(like.shape) > 1 else 1
        length = like.size // rows if rows else 0
        dim = max(1, min(self.dim, length))
        whole = length // dim
        return _Grid(rows, length, dim, whole, -(-length // dim), min(self.k, rows * whole))


@dataclass(frozen=True)
class _Grid:
    """How an array falls into blocks: ``whole`` and all ``blocks`` of a row, ``k`` vectors."""

    rows: int
    length: int
    dim: int
    whole: int
    blocks: int
    k: int


def _narrow(dtype: torch.dtype) -> torch.dtype:
    """Give the dtype in which vectors are sent: its rounding is far below that of the blocks."""
    return torch.bfloat16 if dtype == torch.float32 else dtype


def _trained(blocks: Tensor, k: int, rng: np.random.Generator) -> Tensor:
    """Find ``k`` vectors for ``blocks`` (n, dim), of magnitudes up to 1."""
    from fedcompress.kernels.vectors import refine, seed

    if len(blocks) <= k:
        return blocks.clone()
    points, weights = blocks, np.ones(len(blocks), np.float32)
    samples = k * _SAMPLES_PER_CENTROID
    if len(blocks) > samples:
        ones = torch.ones(blocks.shape[1], device=blocks.device)  # a product, as sums of rows crawl
        energy = (blocks.square() @ ones).double().cpu().numpy()
        share = 0.5 / len(energy) + 0.5 * energy / max(energy.sum(), 1e-300)
        reached = share.cumsum()
        # One draw in each of as many equal stretches varies less than free draws.
        draws = (np.arange(samples) + rng.random(samples)) / samples * reached[-1]
        drawn = np.minimum(reached.searchsorted(draws), len(energy) - 1)
        points = blocks[torch.from_numpy(drawn).to(blocks.device)]
        weights = (1 / (samples * share[drawn])).astype(np.float32)
    host = points.cpu().contiguous().numpy()
    vectors = seed(host, weights, rng.random(k))
    refine(host, weights, vectors, _ROUNDS)
    return torch.from_numpy(vectors).to(blocks.device)


def _nearest(blocks: Tensor, vectors: Tensor) -> Tensor:
    """Give the number (int32) of the vector nearest to each of ``blocks`` (n, dim)."""
    if blocks.device.type == "cpu":
        from fedcompress.kernels.vectors import assign

        out = np.empty(len(blocks), np.int32)
        assign(blocks.contiguous().numpy(), vectors.contiguous().numpy(), out)
        return torch.from_numpy(out)
    parts = [torch.cdist(part, vectors).argmin(1) for part in torch.split(blocks, _CHUNK)]
    return torch.cat(parts).to(torch.int32)


def _means(blocks: Tensor, symbols: Tensor, vectors: Tensor) -> Tensor:
    """Give the mean block of each vector; a vector of no blocks stays as it is."""
    if blocks.device.type == "cpu":
        from fedcompress.kernels.vectors import move

        means = vectors.clone()
        move(blocks.numpy(), np.ones(len(blocks), np.float32), symbols.numpy(), means.numpy())
        return means
    totals = torch.zeros_like(vectors, dtype=torch.float64).index_add_(0, symbols, blocks.double())
    counts = torch.bincount(symbols, minlength=len(vectors))[:, None]
    return torch.where(counts > 0, totals / counts.clamp(min=1), vectors.double()).float()
