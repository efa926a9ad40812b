"""Divide a data set among clients, with flwr-datasets' partitioners, or let each draw its rows."""

import contextlib
import difflib
import io
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, final

import numpy as np
import xxhash

from fedcompress.errors import ConfigError
from fedcompress.randomness import rng_for
from simulations.data import FederatedData
from simulations.data.cache import CachedArrays, cached
from simulations.drawn import DrawnPartition, check_client, row_type

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

Array = np.ndarray[Any, np.dtype[Any]]
DIVIDED = ("iid", "dirichlet", "shards", "natural")
DRAWN = ("drawn", "drawn_dirichlet")
KINDS = (*DIVIDED, *DRAWN)


@final
@dataclass(frozen=True)
class Partition:
    """Which rows each client owns, without an object per client.

    Attributes
    ----------
    offsets : numpy.ndarray
        int64, shape (clients + 1,).
    indices : numpy.ndarray
        Rows of the training data, int32 (int64 past two billion rows); client i owns
        ``indices[offsets[i]:offsets[i + 1]]``.
    """

    offsets: Array
    indices: Array

    @property
    def num_clients(self) -> int:
        """Number of clients."""
        return len(self.offsets) - 1

    def rows(self, client: int) -> Array:
        """Give the rows that a client owns.

        Raises
        ------
        ConfigError
            If there is no such client.
        """
        check_client(client, self.num_clients)
        return self.indices[self.offsets[client] : self.offsets[client + 1]]

    def sizes(self) -> Array:
        """Give the number of rows of each client, int64, shape (clients,)."""
        return np.diff(self.offsets)

    def fingerprint(self) -> bytes:
        """Digest which rows belong to which client."""
        digest = xxhash.xxh3_128(np.ascontiguousarray(self.offsets).data)
        digest.update(np.ascontiguousarray(self.indices).data)
        return digest.digest()


def partition_data(
    data: FederatedData,
    kind: str,
    clients: int,
    seed: int,
    *,
    alpha: float = 0.5,
    shards_per_client: int = 2,
    min_samples: int = 1,
    samples_per_client: int = 50,
) -> Partition | DrawnPartition:
    """Divide the training rows of a data set among clients.

    Parameters
    ----------
    data : FederatedData
        The data set.
    kind : {"iid", "dirichlet", "shards", "natural", "drawn", "drawn_dirichlet"}
        ``iid``: shuffled, in equal parts. ``dirichlet``: the share of each class by client
        is Dirichlet(alpha) (Yurochkin et al., 2019); the same seed gives Flower's partition.
        ``shards``: rows sorted by class, cut into ``clients * shards_per_client`` equal
        shards and dealt out (McMahan et al., 2017); a remainder is left out. ``natural``:
        by the clients that the data themselves name, in sorted order. ``drawn``: each client
        draws `samples_per_client` distinct rows, which others may draw too, so there may be
        more clients than rows. ``drawn_dirichlet``: drawn with its own shares of the classes,
        skewed as those of ``dirichlet`` are among many clients.
    clients : int
        Number of clients; with ``natural``, that many drawn at random, and 0 takes all.
    seed : int
        Seed of the division.
    alpha : float
        Concentration of ``dirichlet`` and ``drawn_dirichlet``, above 0: the smaller, the more
        unlike the clients.
    shards_per_client : int
        Shards of each client.
    min_samples : int
        Fewest rows of a client: ``dirichlet`` is drawn again until all have as many,
        ``natural`` leaves smaller clients out, the others refuse.
    samples_per_client : int
        Rows of each client that draws its own.

    Returns
    -------
    Partition or DrawnPartition
        The former is memory-mapped from the cache after the first call.

    Raises
    ------
    ConfigError
        If a value is out of range or the data cannot be divided so.
    """
    _check(data, kind, clients, alpha, shards_per_client, min_samples)
    if kind in DRAWN:
        if samples_per_client < min_samples:
            raise ConfigError(
                f"partition: samples_per_client is {samples_per_client}, fewer than "
                f"min_samples={min_samples}; lower min_samples"
            )
        skew = alpha if kind == "drawn_dirichlet" else None
        return DrawnPartition(data.train_y, clients, samples_per_client, seed, skew)
    matters = {"dirichlet": alpha, "shards": shards_per_client}.get(kind)
    key = (data.fingerprint, kind, clients, seed, matters, min_samples, version("flwr-datasets"))
    stored = cached(
        "partitions",
        xxhash.xxh3_128_hexdigest(repr(key).encode()),
        lambda: _divide(data, kind, clients, seed, alpha, shards_per_client, min_samples),
    )
    # As plain arrays: numpy takes three times as long for a slice of a memmap.
    return Partition(np.asarray(stored.arrays["offsets"]), np.asarray(stored.arrays["indices"]))


def _check(
    data: FederatedData,
    kind: str,
    clients: int,
    alpha: float,
    shards_per_client: int,
    min_samples: int,
) -> None:
    if kind not in KINDS:
        close = difflib.get_close_matches(kind, KINDS, n=1)
        mend = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(KINDS)}"
        raise ConfigError(f"partition: there is no kind {kind!r}; {mend}")
    fewest = 0 if kind == "natural" else 1
    if clients < fewest:
        raise ConfigError(f"partition: clients must be at least {fewest}, got {clients}")
    if kind in ("iid", "dirichlet", "shards") and clients * max(1, min_samples) > len(data.train_y):
        raise ConfigError(
            f"partition: {clients} clients of at least {max(1, min_samples)} samples need more "
            f"than the {len(data.train_y)} of {data.name}; ask for fewer, "
            'or take kind = "drawn"'
        )
    if not alpha > 0:
        raise ConfigError(f"partition: alpha must be above 0, got {alpha}; did you mean 0.1?")
    if shards_per_client < 1:
        raise ConfigError(
            f"partition: shards_per_client must be at least 1, got {shards_per_client}"
        )
    if kind == "shards" and clients * shards_per_client > len(data.train_y):
        raise ConfigError(
            f"partition: {clients} clients of {shards_per_client} shards need more than the "
            f"{len(data.train_y)} samples of {data.name}; lower clients or shards_per_client"
        )
    if min_samples < 0:
        raise ConfigError(f"partition: min_samples must be at least 0, got {min_samples}")


def _divide(
    data: FederatedData,
    kind: str,
    clients: int,
    seed: int,
    alpha: float,
    shards_per_client: int,
    min_samples: int,
) -> CachedArrays:
    # Imported when a partition is not cached only: the library takes seconds to import.
    from flwr_datasets.partitioner import (
        DirichletPartitioner,
        IidPartitioner,
        NaturalIdPartitioner,
        ShardPartitioner,
    )

    rows = np.arange(len(data.train_y))
    if kind == "iid":
        rng_for(seed, purpose="partition").shuffle(rows)
        owned = _apply(IidPartitioner(clients), rows, None)
    elif kind == "dirichlet":
        partitioner = DirichletPartitioner(
            clients, "by", alpha, min_partition_size=min_samples, seed=seed
        )
        mend = f"raise alpha (now {alpha}), or lower clients or min_samples (now {min_samples})"
        owned = _apply(partitioner, rows, data.train_y, mend)
    elif kind == "shards":
        partitioner = ShardPartitioner(clients, "by", shards_per_client, seed=seed)
        mend = f"lower clients or shards_per_client (now {shards_per_client})"
        owned = _apply(partitioner, rows, data.train_y, mend)
    else:
        if data.natural_ids is None:
            raise ConfigError(
                f"partition: {data.name} names no natural clients; use iid, dirichlet or shards"
            )
        # Ranks stand for the names: the partitioner sorts, and takes strings 20 times slower.
        _, ranks = np.unique(data.natural_ids, return_inverse=True)
        owned = _apply(NaturalIdPartitioner("by"), rows, ranks)
        owned = _some(owned, clients, seed, min_samples, data.name)
    sizes = [len(rows) for rows in owned]
    if min(sizes) < min_samples:
        raise ConfigError(
            f"partition: {kind} leaves a client {min(sizes)} samples, fewer than "
            f"min_samples={min_samples}; ask for fewer clients"
        )
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    indices = np.concatenate(owned).astype(row_type(len(data.train_y)))
    return CachedArrays({"offsets": offsets, "indices": indices}, {"kind": kind})


def _apply(
    partitioner: "Partitioner", rows: Array, by: Array | None, mend: str = ""
) -> list[Array]:
    """Let a partitioner divide a table that holds row numbers and what it divides by."""
    from datasets import Dataset

    columns = {"row": rows} if by is None else {"row": rows, "by": by}
    partitioner.dataset = Dataset.from_dict(columns)
    try:
        # It warns of each draw that left a client too little, and shows a progress bar.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return [
                np.asarray(partitioner.load_partition(client)["row"][:])
                for client in range(partitioner.num_partitions)
            ]
    except ValueError as error:
        raise ConfigError(f"partition: the data cannot be divided so; {mend}") from error


def _some(owned: list[Array], clients: int, seed: int, min_samples: int, name: str) -> list[Array]:
    large = [rows for rows in owned if len(rows) >= max(1, min_samples)]
    if not large or clients > len(large):
        raise ConfigError(
            f"partition: {name} has {len(large)} natural clients of at least {min_samples} "
            f"samples, got clients={clients}; ask for fewer, or 0 for all"
        )
    if clients == 0:
        return large
    drawn = rng_for(seed, purpose="partition").choice(len(large), clients, replace=False)
    return [large[i] for i in sorted(drawn)]
