"""Partitions: every row once, the same for the same seed, and what cannot be is told."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedcompress.errors import ConfigError
from simulations import partition as partition_module
from simulations.cell import Cell
from simulations.data import FederatedData, load_data
from simulations.drawn import DrawnPartition
from simulations.materials import Materials, materials_of
from simulations.partition import DIVIDED, DRAWN, Partition, partition_data


@pytest.fixture(scope="module")
def digits() -> FederatedData:
    return load_data("digits")


@pytest.fixture(scope="module")
def natural(digits: FederatedData) -> FederatedData:
    """Digits with made-up writers: w0 has most rows, w7 the fewest."""
    n = len(digits.train_y)
    ids = np.array([f"w{min(7, int(8 * (i / n) ** 2))}" for i in range(n)])
    return replace(digits, natural_ids=ids, fingerprint="made up writers")


def rows_of(partition: Partition | DrawnPartition) -> Iterator[np.ndarray]:
    return (partition.rows(client) for client in range(partition.num_clients))


@pytest.mark.parametrize("kind", DIVIDED)
def test_each_row_belongs_to_at_most_one_client(natural: FederatedData, kind: str) -> None:
    partition = partition_data(natural, kind, 8, seed=3)
    rows = np.concatenate(list(rows_of(partition)))
    assert isinstance(partition, Partition)
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
    assert isinstance(first, Partition)
    assert isinstance(again, Partition)
    assert isinstance(again.indices.base, np.memmap)
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
        ("drawn", 0, {}, "clients must be at least 1, got 0"),
        ("drawn", 10, {"samples_per_client": 0}, "samples_per_client is 0, fewer than min_samples"),
        ("drawn", 10, {"samples_per_client": 1443}, "must be from 1 to 1442, the rows there are"),
        ("drawn_dirichlet", 10, {"alpha": 0.0}, "alpha must be above 0, got 0.0"),
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


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize("samples", [1, 50, 700, 1442])
def test_drawn_clients_have_distinct_rows_of_the_data(
    digits: FederatedData, kind: str, samples: int
) -> None:
    partition = partition_data(digits, kind, 1_000_000, 3, samples_per_client=samples)
    for client in (0, 1, 999_999):
        rows = partition.rows(client)
        assert rows.dtype == np.int32
        assert len(set(rows.tolist())) == len(rows) == samples
        assert 0 <= rows.min() <= rows.max() < len(digits.train_y)
    assert partition.sizes().sum() == 1_000_000 * samples


@pytest.mark.parametrize("kind", DRAWN)
def test_what_a_client_draws_hangs_on_seed_and_client_alone(
    digits: FederatedData, kind: str
) -> None:
    few, many = (partition_data(digits, kind, clients, 3) for clients in (10, 1_000_000))
    other = partition_data(digits, kind, 10, 4)
    assert all(np.array_equal(few.rows(client), many.rows(client)) for client in range(10))
    drawn = [*rows_of(few), *rows_of(other)]
    assert len({tuple(rows.tolist()) for rows in drawn}) == len(drawn)


def test_drawn_rows_are_as_likely_as_each_other(digits: FederatedData) -> None:
    partition = partition_data(digits, "drawn", 2_000, 0, samples_per_client=144)
    times = np.bincount(np.concatenate(list(rows_of(partition))), minlength=1442)
    expected = 2_000 * 144 / 1442
    # The times of 1,442 rows: chi-square of that many degrees, less what being distinct saves.
    assert ((times - expected) ** 2 / expected).sum() / (1 - 144 / 1442) < 1442 + 4 * 54


def test_drawn_clients_of_many_clients_are_skewed_as_divided_ones(digits: FederatedData) -> None:
    def largest_share(kind: str, clients: int, alpha: float) -> float:
        partition = partition_data(
            digits, kind, clients, 0, alpha=alpha, min_samples=0, samples_per_client=100
        )
        labels = (digits.train_y[rows] for rows in rows_of(partition) if len(rows) >= 20)
        return float(np.mean([np.bincount(y).max() / len(y) for y in labels]))

    for alpha in (0.1, 1.0):
        drawn = largest_share("drawn_dirichlet", 300, alpha)
        assert drawn == pytest.approx(largest_share("dirichlet", 30, alpha), rel=0.2)
    plain = largest_share("drawn", 300, 1.0)
    assert plain == pytest.approx(largest_share("drawn_dirichlet", 300, 1e4), rel=0.05)


def test_a_class_that_is_used_up_gives_way_to_others(digits: FederatedData) -> None:
    partition = partition_data(digits, "drawn_dirichlet", 20, 0, alpha=1e-6, samples_per_client=400)
    of_each = np.bincount(digits.train_y)
    for rows in rows_of(partition):
        counts = np.bincount(digits.train_y[rows], minlength=10)
        assert (counts == of_each).any()
        assert counts.sum() == 400


def test_a_million_drawn_clients_take_no_memory(digits: FederatedData) -> None:
    tracemalloc.start()
    try:
        partition = partition_data(digits, "drawn_dirichlet", 1_000_000, 0)
        for client in range(0, 1_000_000, 10_000):
            partition.rows(client)
        assert partition.sizes()[-1] == 50
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_drawn_clients_draw_no_proxy_rows(digits: FederatedData) -> None:
    def materials(samples: int) -> Materials:
        settings = {"kind": "drawn", "clients": 5_000, "samples_per_client": samples}
        return materials_of(Cell.checked({"partition": settings, "proxy": {"samples": 700}}, ""))

    held = materials(700)
    assert held.proxy_mask is not None
    assert held.proxy_mask.sum() == 700
    for client in (0, 4_999):
        rows = held.rows(client)
        assert len(rows) == 700
        assert not held.proxy_mask[rows].any()
    with pytest.raises(ConfigError, match="from 1 to 742, the rows there are to draw from"):
        materials(800)


def test_roles_of_the_plays(data_dir: Path) -> None:
    data = load_data("shakespeare", str(data_dir))
    assert data.natural_ids is not None
    partition = partition_data(data, "natural", 0, seed=0)
    assert partition.num_clients == 414
    assert partition.sizes().sum() == len(data.train_y)
    names = [np.unique(data.natural_ids[rows]).tolist() for rows in rows_of(partition)]
    assert all(len(name) == 1 for name in names)
    assert names == sorted(names)
