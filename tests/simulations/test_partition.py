"""Partitions: every row once, the same for the same seed, and what cannot be is told."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedcompress.errors import ConfigError
from simulations import partition as partition_module
from simulations.data import FederatedData, load_data
from simulations.partition import KINDS, Partition, partition_data


@pytest.fixture(scope="module")
def digits() -> FederatedData:
    return load_data("digits")


@pytest.fixture(scope="module")
def natural(digits: FederatedData) -> FederatedData:
    """Digits with made-up writers: w0 has most rows, w7 the fewest."""
    n = len(digits.train_y)
    ids = np.array([f"w{min(7, int(8 * (i / n) ** 2))}" for i in range(n)])
    return replace(digits, natural_ids=ids, fingerprint="made up writers")


def rows_of(partition: Partition) -> Iterator[np.ndarray]:
    return (partition.rows(client) for client in range(partition.num_clients))


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_belongs_to_at_most_one_client(natural: FederatedData, kind: str) -> None:
    partition = partition_data(natural, kind, 8, seed=3)
    rows = np.concatenate(list(rows_of(partition)))
    assert partition.num_clients == 8
    assert len(set(rows.tolist())) == len(rows) == partition.sizes().sum()
    left_out = len(natural.train_y) - len(rows)
    # Equal shards leave out the remainder of a division, the others nothing.
    assert left_out == (len(natural.train_y) % 16 if kind == "shards" else 0)
    assert partition.indices.dtype == np.int32
    assert partition.offsets.dtype == np.int64


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "shards"])
def test_the_seed_decides(digits: FederatedData, kind: str) -> None:
    def divide(seed: int) -> np.ndarray:
        owned = partition_module._divide(digits, kind, 10, seed, 0.5, 2, 1)
        return np.asarray(owned.arrays["indices"])

    assert np.array_equal(divide(1), divide(1))
    assert not np.array_equal(divide(1), divide(2))


def test_iid_parts_are_equal_and_mixed(digits: FederatedData) -> None:
    partition = partition_data(digits, "iid", 10, seed=0)
    assert np.ptp(partition.sizes()) <= 1
    assert all(len(np.unique(digits.train_y[rows])) == 10 for rows in rows_of(partition))


def test_a_smaller_alpha_makes_clients_less_alike(digits: FederatedData) -> None:
    def distance(alpha: float) -> float:
        partition = partition_data(digits, "dirichlet", 10, seed=0, alpha=alpha)
        whole = np.bincount(digits.train_y, minlength=10) / len(digits.train_y)
        shares = [
            np.bincount(digits.train_y[rows], minlength=10) / len(rows)
            for rows in rows_of(partition)
        ]
        return float(np.mean([np.abs(share - whole).sum() for share in shares]))

    assert distance(0.1) > distance(1.0) > distance(100.0)


def test_shards_hold_few_classes(digits: FederatedData) -> None:
    partition = partition_data(digits, "shards", 20, seed=0, shards_per_client=1)
    assert all(len(np.unique(digits.train_y[rows])) <= 3 for rows in rows_of(partition))


def test_natural_clients_are_those_of_the_data(natural: FederatedData) -> None:
    assert natural.natural_ids is not None
    partition = partition_data(natural, "natural", 0, seed=0)
    names = [set(natural.natural_ids[rows].tolist()) for rows in rows_of(partition)]
    assert names == [{f"w{i}"} for i in range(8)]


def test_some_natural_clients(natural: FederatedData) -> None:
    assert natural.natural_ids is not None
    partition = partition_data(natural, "natural", 3, seed=0, min_samples=90)
    assert partition.num_clients == 3
    assert partition.sizes().min() >= 90
    assert all(len(set(natural.natural_ids[rows].tolist())) == 1 for rows in rows_of(partition))


@pytest.mark.parametrize("min_samples", [0, 1, 40])
def test_clients_have_the_fewest_samples_asked_for(digits: FederatedData, min_samples: int) -> None:
    partition = partition_data(digits, "dirichlet", 10, 0, alpha=0.5, min_samples=min_samples)
    assert partition.sizes().min() >= min_samples


def test_divided_once(digits: FederatedData, monkeypatch: pytest.MonkeyPatch) -> None:
    first = partition_data(digits, "iid", 7, seed=5)
    monkeypatch.setattr(partition_module, "_divide", lambda *_: pytest.fail("divided again"))
    again = partition_data(digits, "iid", 7, seed=5)
    assert isinstance(again.indices, np.memmap)
    assert np.array_equal(first.indices, again.indices)


@pytest.mark.parametrize(
    ("kind", "clients", "settings", "told"),
    [
        ("dirichelt", 10, {}, "did you mean 'dirichlet'"),
        ("iid", 0, {}, "clients must be at least 1, got 0"),
        ("iid", 5000, {}, "need more than the 1442 of digits"),
        ("iid", 100, {"min_samples": 15}, "need more than the 1442 of digits"),
        ("dirichlet", 10, {"alpha": -1.0}, "alpha must be above 0, got -1.0"),
        ("dirichlet", 20, {"alpha": 0.001, "min_samples": 50}, "raise alpha (now 0.001)"),
        ("shards", 10, {"shards_per_client": 0}, "shards_per_client must be at least 1"),
        ("shards", 1000, {"shards_per_client": 9}, "lower clients or shards_per_client"),
        ("natural", 0, {}, "digits names no natural clients"),
        ("iid", 10, {"min_samples": -1}, "min_samples must be at least 0, got -1"),
    ],
)
def test_what_cannot_be_is_told(
    digits: FederatedData, kind: str, clients: int, settings: dict[str, float], told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        partition_data(digits, kind, clients, 0, **settings)  # type: ignore[arg-type]
    assert told in str(caught.value)


def test_more_natural_clients_than_there_are(natural: FederatedData) -> None:
    with pytest.raises(ConfigError, match="has 8 natural clients of at least 1 samples, got"):
        partition_data(natural, "natural", 9, seed=0)


def test_a_client_that_is_not_there(digits: FederatedData) -> None:
    with pytest.raises(ConfigError, match="there is no client 7; clients are 0 to 6"):
        partition_data(digits, "iid", 7, seed=5).rows(7)


def test_roles_of_the_plays(data_dir: Path) -> None:
    data = load_data("shakespeare", str(data_dir))
    assert data.natural_ids is not None
    partition = partition_data(data, "natural", 0, seed=0)
    assert partition.num_clients == 414
    assert partition.sizes().sum() == len(data.train_y)
    names = [np.unique(data.natural_ids[rows]).tolist() for rows in rows_of(partition)]
    assert all(len(name) == 1 for name in names)
    assert names == sorted(names)
