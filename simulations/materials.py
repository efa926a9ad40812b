"""Data, partition and proxy rows of a cell, loaded once per process."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, final

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from fedcompress import rng_for
from fedcompress.errors import ConfigError
from simulations.cell import Cell, DataSettings, PartitionSettings, ProxySettings
from simulations.data import FederatedData, load_data
from simulations.drawn import DrawnPartition
from simulations.model_settings import ModelSettings
from simulations.models import build_model
from simulations.partition import Partition, partition_data
from simulations.strategy_settings import StudentSettings

Rows = np.ndarray[Any, np.dtype[np.integer[Any]]]

PROXY_ROWS = ("held_out", "data")
"""Kinds of proxy data that are rows of a data set; the others are made anew in each round."""


@final
@dataclass(frozen=True)
class Materials:
    """What every client of a cell shares.

    Attributes
    ----------
    data : FederatedData
        The data set.
    partition : Partition or DrawnPartition
        Which rows belong to which client.
    proxy_mask : ndarray of bool or None
        Training rows, shape (n,), that are proxy data and that no client trains on.
    proxy : ProxySettings
        Where proxy data come from.
    """

    data: FederatedData
    partition: Partition | DrawnPartition
    proxy_mask: Rows | None
    proxy: ProxySettings
    data_dir: str | None

    def rows(self, client: int) -> Rows:
        """Training rows of one client.

        Raises
        ------
        ConfigError
            If the partition has no such client.
        """
        if not 0 <= client < self.partition.num_clients:
            raise ConfigError(
                f"partition-id: the partition has clients 0 to {self.partition.num_clients - 1}, "
                f"got {client}; set partition.clients to the number of nodes"
            )
        rows = self.partition.rows(client)
        if self.proxy_mask is None or isinstance(self.partition, DrawnPartition):
            return rows
        return rows[~self.proxy_mask[rows]]

    def facts(self) -> dict[str, str]:
        """Fingerprint data and partition, each by a name that says where it comes from."""
        place = "" if self.data_dir is None else f" in {self.data_dir}"
        digest = xxhash.xxh3_128(self.partition.fingerprint())
        if self.proxy_mask is not None:
            digest.update(self.proxy_mask.tobytes())
        return {
            f"data {self.data.name!r}{place}": self.data.fingerprint,
            f"partition of {self.data.name!r}": digest.hexdigest(),
        }

    def proxy_inputs(self) -> Tensor:
        """Unlabelled inputs to distil on, as models take them.

        Raises
        ------
        ConfigError
            If there are none, or they are of another shape.
        """
        if self.proxy_mask is not None:
            rows = np.flatnonzero(self.proxy_mask)
            return self.data.inputs(self.data.train_x[rows])
        if self.proxy.source != "data":
            why = f"those of kind {self.proxy.source!r} are made anew in each round"
            raise ConfigError(
                f"proxy: fixed rows are needed here, and "
                f"{why if self.proxy.samples else 'proxy.samples is 0'}; "
                'set proxy.kind = "held_out" and proxy.samples = 1000, say'
            )
        other = load_data(str(self.proxy.data), self.data_dir)
        if other.train_x.shape[1:] != self.data.train_x.shape[1:]:
            raise ConfigError(
                f"proxy.data: {other.name} has inputs of shape {other.train_x.shape[1:]}, "
                f"{self.data.name} of {self.data.train_x.shape[1:]}; choose data of the same shape"
            )
        if len(other.train_x) < self.proxy.samples:
            raise ConfigError(
                f"proxy.samples: {other.name} has {len(other.train_x)} rows, got "
                f"{self.proxy.samples}; set fewer"
            )
        return other.inputs(other.train_x[: self.proxy.samples])

    def proxy_facts(self) -> dict[str, Any] | None:
        """Say of the proxy data where they come from, how many, and which; None without any."""
        if self.proxy.samples == 0:
            return None
        said = {"kind": self.proxy.source, "augment": self.proxy.augment}
        if self.proxy.source not in PROXY_ROWS:
            return {**said, "rows": self.proxy.samples}
        inputs = self.proxy_inputs()
        return {
            **said,
            "rows": len(inputs),
            "fingerprint": xxhash.xxh3_128(inputs.contiguous().numpy().tobytes()).hexdigest(),
        }

    def new_model(self, settings: ModelSettings | StudentSettings, seed: int) -> nn.Module:
        """Build a model for these data, its weights drawn from the seed."""
        return build_model(
            settings.name,
            self.data.sample_shape,
            self.data.num_classes,
            seed=seed,
            hidden=settings.hidden,
            width=settings.width,
        )


def materials_of(cell: Cell) -> Materials:
    """Load what a cell works on, or give what this process has of it.

    Raises
    ------
    ConfigError
        If the data are not there or cannot be divided so.
    """
    # The same sums on every engine need the same number of threads.
    torch.set_num_threads(1)
    return _load(cell.data, cell.partition, cell.proxy, cell.seed)


@lru_cache(maxsize=2)
def _load(
    data_settings: DataSettings, settings: PartitionSettings, proxy: ProxySettings, seed: int
) -> Materials:
    data = _data(data_settings)
    partition = partition_data(
        data,
        settings.kind,
        settings.clients,
        seed,
        alpha=settings.alpha,
        shards_per_client=settings.shards_per_client,
        min_samples=settings.min_samples,
        samples_per_client=settings.samples_per_client,
    )
    held_out = None
    if proxy.samples > 0 and proxy.source == "held_out":
        held_out = _draw_proxy_rows(len(data.train_y), proxy.samples, seed)
        if isinstance(partition, DrawnPartition):
            partition = replace(partition, held_out=held_out)
        else:
            _leave_one_each(held_out, partition)
    return Materials(data, partition, held_out, proxy, data_settings.data_dir)


@lru_cache(maxsize=2)
def _data(settings: DataSettings) -> FederatedData:
    return load_data(settings.name, settings.data_dir)


def _draw_proxy_rows(count: int, samples: int, seed: int) -> Rows:
    if samples > count // 2:
        raise ConfigError(
            f"proxy.samples: {samples} of {count} training rows would be held out; "
            f"at most half, {count // 2}, can be"
        )
    rng = rng_for(seed, client="server", purpose="proxy data")
    mask = np.zeros(count, dtype=bool)
    mask[rng.choice(count, size=samples, replace=False)] = True
    return mask


def _leave_one_each(mask: Rows, partition: Partition) -> None:
    """Give back a row to every client that would be left none of its own."""
    owners = np.repeat(np.arange(partition.num_clients), np.diff(partition.offsets))
    kept = np.bincount(owners, weights=~mask[partition.indices], minlength=partition.num_clients)
    for client in np.flatnonzero((kept == 0) & (np.diff(partition.offsets) > 0)):
        mask[partition.rows(int(client))[0]] = False
