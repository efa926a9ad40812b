"""Every client holds the first units of each layer: HeteroFL, and FjORD's ordered dropout."""

from dataclasses import replace
from functools import cached_property
from typing import Any, final

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedcompress import rng_for
from fedcompress.errors import ConfigError
from fedcompress.slices import SliceMap, slice_map, take
from simulations.cell import Cell
from simulations.exchanges.assigned import Assigned
from simulations.exchanges.exchange import Exchange, Told, Trained
from simulations.exchanges.kept_models import trained_model
from simulations.exchanges.whole import WholeModel
from simulations.materials import Materials
from simulations.model_record import load_record, model_record
from simulations.models import estimate_statistics
from simulations.strategy_settings import WidthsSettings
from simulations.training import TrainingPath, train_locally
from simulations.training.ordered_dropout import train_with_ordered_dropout
from strategies import Slices

_SCALED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@final
class SlicedModel(Exchange):
    """Clients of several widths of one network (Diao et al., 2021; Horvath et al., 2021).

    A client's level is a fraction of the cell's `model.width`; it gets and sends that slice alone.
    As many clients are of each level; with `drawn`, each draws one in every round. The global model
    is as wide as the widest level.
    """

    def __init__(self, cell: Cell, materials: Materials) -> None:
        self._settings = cell.strategy.widths or WidthsSettings()
        widest = max(self._settings.levels, default=1.0)
        model = cell.model.model_copy(update={"width": cell.model.width * widest})
        super().__init__(cell.model_copy(update={"model": model}), materials)
        self._levels = {f"{level:g}": level / widest for level in self._settings.levels}
        self._whole = WholeModel(self.cell, materials)
        self._check_levels()

    def start(self) -> ArrayRecord:
        return self._whole.start()

    def model_of(self, arrays: ArrayRecord) -> nn.Module:
        return self._whole.model_of(arrays)

    def strategy(self, inner: Strategy) -> Strategy:
        if not isinstance(inner, FedAvg):
            raise ConfigError(
                f"strategies.{self.cell.label}: slices are averaged by FedAvg or a rule like it, "
                f"got {type(inner).__name__}; leave distill out"
            )
        assigned = Assigned(
            list(self._levels),
            [1.0] * len(self._levels),
            self.materials.partition.num_clients,
            seed=self.cell.seed,
            purpose="widths",
        )

        def level_of(node_id: int, server_round: int) -> str:
            if self._settings.drawn:
                return assigned.drawn(node_id, server_round)
            return assigned.of_node(node_id)

        return Slices(inner, layouts=self._layouts, level_of=level_of)

    def train(self, told: Told, context: Context) -> Trained:
        model = self._models[told.group]
        load_record(model, told.arrays)
        options = replace(told.options, mask_loss=self._settings.mask_loss)
        rng = rng_for(self.cell.seed, round=told.round, client=told.client, purpose="training")
        data, rows = self.materials.data, self.materials.rows(told.client)
        if self._settings.ordered_dropout:
            result = train_with_ordered_dropout(
                *(model, self._narrower(told.group), data, rows, options, rng),
                self_distil=self._settings.self_distil,
                device=self.cell.device,
            )
        else:
            device = self.cell.device
            result = train_locally(model, data, rows, options, rng, device, self.path())
        return Trained(model_record(model), result)

    def parts_of(self, arrays: ArrayRecord) -> dict[str, nn.Module]:
        """Give each level's slice of the global model, where there are several."""
        if len(self._levels) == 1:
            return {}
        whole = self.new_model()
        load_record(whole, arrays)
        parts = {}
        for name, layout in self._layouts.items():
            # Built anew: scaled outputs would go into statistics that are estimated in training.
            parts[name] = self._new(name)
            parts[name].load_state_dict(take(whole.state_dict(), layout))
            if self._is_static:
                estimate_statistics(parts[name], self._proxy_inputs)
        return parts

    def facts(self, arrays: ArrayRecord) -> dict[str, Any]:
        """Give the size of each level's slice."""
        sizes = {n: sum(p.numel() for p in model.parameters()) for n, model in self._models.items()}
        return {"levels": {name: {"parameters": size} for name, size in sizes.items()}}

    def path(self) -> TrainingPath:
        # The compiled programs know neither masked losses nor what is put between layers.
        chosen = self._settings
        plain = not (chosen.scale or chosen.mask_loss or chosen.ordered_dropout)
        return super().path() if plain else "eager"

    @property
    def _is_static(self) -> bool:
        return self.cell.model.norm_statistics == "static"

    @cached_property
    def _proxy_inputs(self) -> Tensor:
        return self.materials.proxy_inputs()

    @cached_property
    def _models(self) -> dict[str, nn.Module]:
        """The model of each level as clients train it; its values are whatever was left in it."""
        models = {}
        for name, level in self._levels.items():
            models[name] = self._new(name)
            if self._settings.scale:
                _scale_outputs(models[name], self.new_model(), level)
        return models

    @cached_property
    def _layouts(self) -> dict[str, SliceMap]:
        whole = self.new_model()
        return {name: slice_map(whole, model) for name, model in self._models.items()}

    def _new(self, name: str) -> nn.Module:
        width = self.cell.model.width * self._levels[name]
        settings = self.cell.model.model_copy(update={"width": width})
        return trained_model(settings, self.materials, seed=0)

    def _narrower(self, group: str) -> list[tuple[nn.Module, SliceMap]]:
        """Give the levels below one, and where in its slice they lie."""
        model = self._models[group]
        return [
            (self._models[name], slice_map(model, self._models[name]))
            for name, level in self._levels.items()
            if level < self._levels[group]
        ]

    def _check_levels(self) -> None:
        key = f"strategies.{self.cell.label}.widths"
        given = self._settings.levels
        if not given or len(self._levels) < len(given):
            raise ConfigError(
                f"{key}.levels: they are different fractions of model.width, at least one, got "
                f"{', '.join(f'{level:g}' for level in given) or 'none'}"
            )
        norms = any(isinstance(module, _BatchNorm) for module in self.new_model().modules())
        if norms and self._settings.scale and not self._is_static and len(given) > 1:
            raise ConfigError(
                f"{key}.scale: scaled outputs are in training alone, so running statistics of "
                'batch normalisation are wrong in tests; set model.norm_statistics = "static", or '
                "scale = false"
            )
        if self._settings.self_distil and not self._settings.ordered_dropout:
            raise ConfigError(
                f"{key}.self_distil: a slice follows the model of its client in ordered dropout "
                "alone; set ordered_dropout = true, or leave it out"
            )


def _scale_outputs(model: nn.Module, wide: nn.Module, level: float) -> None:
    """Divide the outputs of narrowed layers by their level in training, as if all units were there.

    After Diao et al. (2021): a unit that follows sees sums as large as those of the wide model.
    """

    def scaled(layer: nn.Module, _: object, output: Tensor) -> Tensor:
        return output / level if layer.training else output

    for path, layer in model.named_modules():
        whole = wide.get_submodule(path)
        if isinstance(layer, _SCALED) and len(layer.weight) < len(_weight(whole)):
            layer.register_forward_hook(scaled)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight
