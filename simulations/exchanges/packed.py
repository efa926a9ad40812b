"""Pruned models: what is left of the model travels, and clients train no more than that."""

from typing import Any, ClassVar, final

import numpy as np
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedcompress import rng_for
from fedcompress.errors import ConfigError
from fedcompress.links import Uplink
from fedcompress.packing import mask_in_use
from fedcompress.pruning import (
    IMPORTANCES,
    Pattern,
    Schedule,
    across_layers,
    by_layer,
    n_of_m,
    rows,
    units,
)
from simulations.cell import Cell
from simulations.exchanges.exchange import Exchange, Told, Trained
from simulations.exchanges.kept_models import kept_model
from simulations.exchanges.whole import WholeModel
from simulations.materials import Materials
from simulations.model_record import load_record, model_record
from simulations.models.unit_groups import unit_groups
from simulations.strategy_settings import PruneSettings
from simulations.training import train_locally
from strategies.adaptive import adaptive_uplink
from strategies.pruned import Pruned

_PROBED_ROWS = 2


@final
class Packed(Exchange):
    """The kept entries of a model that is pruned during training (see `strategies.Pruned`).

    Messages are packed and unpacked by `packing_mod`: here models are whole, with zeros.
    """

    distils: ClassVar[bool] = True

    def __init__(self, cell: Cell, materials: Materials) -> None:
        super().__init__(cell, materials)
        self._settings = cell.strategy.prune or PruneSettings()
        if cell.rounds < self._settings.last:
            raise ConfigError(
                f"strategies.{cell.label}.prune.last: weights are pruned until round "
                f"{self._settings.last} and there are {cell.rounds} rounds, so a sparsity of "
                f"{self._settings.sparsity:g} would not be reached; set prune.first and prune.last "
                "lower, or more rounds"
            )
        self._whole = WholeModel(cell, materials)
        self._pruned: Pruned | None = None

    def start(self) -> ArrayRecord:
        return self._whole.start()

    def model_of(self, arrays: ArrayRecord) -> nn.Module:
        return self._whole.model_of(arrays)

    def train(self, told: Told, context: Context) -> Trained:
        model = kept_model(self.cell.model, self.materials)
        load_record(model, told.arrays)
        mask = mask_in_use(told.config, context)
        trained = {name for name, x in model.named_parameters() if x.requires_grad}
        result = train_locally(
            model,
            self.materials.data,
            self.materials.rows(told.client),
            told.options,
            rng_for(self.cell.seed, round=told.round, client=told.client, purpose="training"),
            self.cell.device,
            self.cell.training.path,
            mask=None if mask is None else {n: x for n, x in mask.items() if n in trained},
        )
        return Trained(model_record(model), result)

    def strategy(self, inner: Strategy) -> Strategy:
        chosen = self._settings
        self._pruned = Pruned(
            inner,
            schedule=Schedule(
                chosen.sparsity, chosen.first, chosen.last, chosen.every, chosen.regrow
            ),
            importance=IMPORTANCES[chosen.importance],
            pattern=self._pattern(),
            only=chosen.only,
            remembers=True if chosen.adaptive_step is not None else None,
        )
        return self._pruned

    def uplink(self) -> Uplink | None:
        step = self._settings.adaptive_step
        if step is None or self._pruned is None:
            return super().uplink()
        return adaptive_uplink(self._pruned, step=step)

    def facts(self, arrays: ArrayRecord) -> dict[str, Any]:
        masks = {} if self._pruned is None else self._pruned.mask
        sizes = {name: x.numel() for name, x in masks.items()}
        kept = {name: int(x.sum()) for name, x in masks.items()}
        total = sum(sizes.values())
        step = self._settings.adaptive_step
        said = {} if step is None else {"uplink": f"steps by importance around {step:g}"}
        return said | {
            "pruning": {
                "sparsity": 1 - sum(kept.values()) / total if total else 0.0,
                "kept_entries": sum(kept.values()),
                "kept_share_by_array": {name: kept[name] / sizes[name] for name in sizes},
            }
        }

    def _pattern(self) -> Pattern:
        chosen = self._settings
        if chosen.pattern == "n_of_m":
            return n_of_m(chosen.n, chosen.m)
        if chosen.pattern == "units":
            data = self.materials.data
            inputs = data.inputs(torch.from_numpy(np.array(data.train_x[:_PROBED_ROWS])))
            return units(unit_groups(self.new_model(), inputs))
        return {"layer": by_layer, "across": across_layers, "rows": rows}[chosen.pattern]
