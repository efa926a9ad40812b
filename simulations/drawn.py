"""Partitions of more clients than the data have rows: every client draws rows of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import xxhash

from fedcompress.errors import ConfigError
from fedcompress.randomness import rng_for

Array = np.ndarray[Any, np.dtype[Any]]


@final
@dataclass(frozen=True)
class DrawnPartition:
    """Rows of each client, drawn when they are asked for: nothing is kept for a client.

    A client's rows are distinct and depend on the seed and the client alone, however many
    others there are; two clients may share rows.

    Attributes
    ----------
    labels : numpy.ndarray
        Label of each training row, shape (n,).
    num_clients : int
        Number of clients.
    samples_per_client : int
        Rows of every client, at most n.
    seed : int
        Seed of the draws.
    alpha : float, optional
        Skew of the labels: a client's share of each class is in proportion to the class's
        share of the data times a Gamma(alpha) variate, which with classes of one size is
        Dirichlet(alpha), as in Hsu et al. (2019). None draws from all rows alike.
    held_out : numpy.ndarray, optional
        Rows that no client draws, shape (n,), bool.

    Raises
    ------
    ConfigError
        If there are fewer rows than a client is to have.
    """

    labels: Array
    num_clients: int
    samples_per_client: int
    seed: int
    alpha: float | None = None
    held_out: Array | None = None

    def __post_init__(self) -> None:
        there = len(self.labels) - (0 if self.held_out is None else int(self.held_out.sum()))
        if not 1 <= self.samples_per_client <= there:
            raise ConfigError(
                f"partition: samples_per_client must be from 1 to {there}, the rows there are to "
                f"draw from, got {self.samples_per_client}"
            )

    def rows(self, client: int) -> Array:
        """Draw the rows that a client owns, int32 (int64 past two billion rows).

        Raises
        ------
        ConfigError
            If there is no such client.
        """
        check_client(client, self.num_clients)
        rows, starts, sizes = self._pool
        rng = rng_for(self.seed, client=client, purpose="partition")
        counts = np.array([self.samples_per_client])
        if self.alpha is not None:
            shares = rng.dirichlet(np.full(len(sizes), self.alpha)) * sizes
            counts = _counts(rng, self.samples_per_client, shares, sizes)
        return rows[_distinct(rng, starts, sizes, counts)]

    def sizes(self) -> Array:
        """Give the number of rows of each client, int64, shape (clients,); takes no memory."""
        return np.broadcast_to(np.int64(self.samples_per_client), (self.num_clients,))

    def fingerprint(self) -> bytes:
        """Digest how clients draw, and what the first and the last one do draw."""
        about = (self.num_clients, self.samples_per_client, self.seed, self.alpha)
        digest = xxhash.xxh3_128(repr(about).encode())
        for client in (0, self.num_clients - 1):
            digest.update(self.rows(client).astype(np.int64).tobytes())
        return digest.digest()

    @cached_property
    def _pool(self) -> tuple[Array, Array, Array]:
        """Rows that may be drawn, in groups: (rows, where each group starts, its size)."""
        rows = np.arange(len(self.labels), dtype=row_type(len(self.labels)))
        if self.held_out is not None:
            rows = rows[~self.held_out]
        if self.alpha is None:
            return rows, np.zeros(1, np.int64), np.array([len(rows)])
        rows = rows[np.argsort(self.labels[rows], kind="stable")]
        _, starts, sizes = np.unique(self.labels[rows], return_index=True, return_counts=True)
        return rows, starts, sizes


def check_client(client: int, clients: int) -> None:
    """Refuse a client that a partition does not have; raise `ConfigError`."""
    if not 0 <= client < clients:
        raise ConfigError(f"partition: there is no client {client}; clients are 0 to {clients - 1}")


def row_type(rows: int) -> type[np.signedinteger[Any]]:
    """Give the narrowest type of row numbers: int32, int64 past two billion rows."""
    return np.int32 if rows <= np.iinfo(np.int32).max else np.int64


def _counts(rng: np.random.Generator, total: int, shares: Array, sizes: Array) -> Array:
    """Divide a total by shares; what a group is too small for goes to the others."""
    counts = np.zeros(len(sizes), np.int64)
    while (left := total - int(counts.sum())) > 0:
        room = sizes - counts
        weights = np.where(room > 0, shares, 0.0)
        # Where every class of the client is used up it draws from the rest of the data.
        weights = weights if weights.sum() > 0 else room.astype(np.float64)
        counts = np.minimum(counts + rng.multinomial(left, weights / weights.sum()), sizes)
    return counts


def _distinct(rng: np.random.Generator, starts: Array, sizes: Array, counts: Array) -> Array:
    """Draw that many distinct places of each group, every set of them as likely."""
    if np.all(2 * counts <= sizes):
        first, size = np.repeat(starts, counts), np.repeat(sizes, counts)
        places: Array = first + (rng.random(len(size)) * size).astype(np.int64)
        while True:
            _, kept = np.unique(places, return_index=True)
            if len(kept) == len(places):
                return places
            again = np.ones(len(places), dtype=bool)
            again[kept] = False
            drawn = rng.random(int(again.sum())) * size[again]
            places[again] = first[again] + drawn.astype(np.int64)
    # Drawing again and again would take long where most of a group is wanted.
    drawn_of_each = [
        start + rng.choice(size, count, replace=False)
        for start, size, count in zip(starts, sizes, counts, strict=True)
    ]
    return np.concatenate(drawn_of_each)
