"""Several architectures in one federation: each client has one of them, by its group."""

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import cached_property
from typing import Any, ClassVar, final

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import Tensor, nn

from fedcompress import rng_for
from fedcompress.distill import augmented
from fedcompress.errors import ConfigError
from simulations.cell import Cell
from simulations.exchanges.assigned import Assigned
from simulations.exchanges.exchange import Exchange, Told, Trained
from simulations.exchanges.kept_models import kept_model, trained_model
from simulations.materials import Materials
from simulations.model_record import load_record, model_record
from simulations.model_settings import ModelSettings, read_models
from simulations.models import estimate_statistics
from simulations.training import TrainingPath, choose_path, train_locally
from strategies import Groups, GroupsDistilled
from strategies.groups import SEPARATOR, join_groups

# Of `distill`, what distillation into several models has no use for.
_NOT_HERE = ("enabled", "memory", "one_at_a_time")


@final
class ModelGroups(Exchange):
    """Each group averages its own model; with `distill` they learn from each other.

    What is tested is the ensemble of the groups' models, by the mean of their probabilities, and
    each of them by itself.
    """

    distils_itself: ClassVar[bool] = True

    def __init__(self, cell: Cell, materials: Materials) -> None:
        super().__init__(cell, materials)
        self._settings = groups_of(cell)
        shares = cell.strategy.group_shares or (1.0,) * len(self._settings)
        clients = materials.partition.num_clients
        self._check(shares)
        self._assigned = Assigned(
            list(self._settings), shares, clients, seed=cell.seed, purpose="groups"
        )
        for name in self._settings:
            if self._assigned.count(name) == 0:
                raise ConfigError(
                    f"strategies.{cell.label}.group_shares: no client of {clients} is of group "
                    f"{name!r}; have more clients, or give it a larger share"
                )

    def start(self) -> ArrayRecord:
        return join_groups({name: model_record(model) for name, model in self._models().items()})

    def model_of(self, arrays: ArrayRecord) -> nn.Module:
        models = self._loaded(arrays)
        return next(iter(models.values())) if len(models) == 1 else JointModel(models)

    def new_model(self) -> nn.Module:
        return JointModel(self._models())

    def train(self, told: Told, context: Context) -> Trained:
        model = kept_model(self._settings[told.group], self.materials)
        load_record(model, told.arrays)
        result = train_locally(
            model,
            self.materials.data,
            self.materials.rows(told.client),
            told.options,
            rng_for(self.cell.seed, round=told.round, client=told.client, purpose="training"),
            self.cell.device,
            self.cell.training.path,
        )
        return Trained(model_record(model), result)

    def strategy(self, inner: Strategy) -> Strategy:
        groups = Groups(
            {name: self._rule(inner, name) for name in self._settings},
            group_of=self._assigned.of_node,
        )
        if not self.cell.strategy.distills:
            return groups
        return GroupsDistilled(
            groups,
            models={name: self._maker(one) for name, one in self._settings.items()},
            proxy=self._distilled_on(),
            seed=self.cell.seed,
            device=self.cell.device,
            **self._distillation(),
        )

    def parts_of(self, arrays: ArrayRecord) -> dict[str, nn.Module]:
        return self._loaded(arrays)

    def facts(self, arrays: ArrayRecord) -> dict[str, Any]:
        """Give the size of each group's model, and how many clients it has."""
        groups = {
            name: {
                "clients": self._assigned.count(name),
                "parameters": sum(p.numel() for p in model.parameters()),
            }
            for name, model in self._models().items()
        }
        return {"groups": groups}

    def dense_bytes(self) -> int:
        """Give the payload bytes of a client's model as it is, on average over the clients."""
        records = {name: model_record(model) for name, model in self._models().items()}
        total = sum(
            self._assigned.count(name) * sum(len(array.data) for array in record.values())
            for name, record in records.items()
        )
        return round(total / self.materials.partition.num_clients)

    def path(self) -> TrainingPath:
        data, device = self.materials.data, torch.device(self.cell.device)
        paths = {
            choose_path(self.cell.training.path, model, data, device)
            for model in self._models().values()
        }
        return "compiled" if paths == {"compiled"} else "eager"

    def _models(self) -> dict[str, nn.Module]:
        seed = self.cell.seed
        return {n: trained_model(one, self.materials, seed) for n, one in self._settings.items()}

    def _maker(self, settings: ModelSettings) -> Callable[[], nn.Module]:
        return lambda: trained_model(settings, self.materials, self.cell.seed)

    def _loaded(self, arrays: ArrayRecord) -> dict[str, nn.Module]:
        """Give each group's model with its values, ready for a test."""
        models = self._models()
        for name, model in models.items():
            prefix = name + SEPARATOR
            own = {n.removeprefix(prefix): x for n, x in arrays.items() if n.startswith(prefix)}
            load_record(model, ArrayRecord(own))
            if self._settings[name].norm_statistics == "static":
                estimate_statistics(model, self._proxy_inputs)
        return models

    def _rule(self, inner: Strategy, name: str) -> Strategy:
        """Copy the server's rule for the clients of one group."""
        rule, clients = deepcopy(inner), self._assigned.count(name)
        if not isinstance(rule, FedAvg):
            raise ConfigError(
                f"strategies.{self.cell.label}: each group has a rule of Flower's, got "
                f"{type(rule).__name__}"
            )
        rule.min_available_nodes = clients
        rule.min_train_nodes = max(1, round(clients * self.cell.federation.fraction))
        return rule

    def _distilled_on(self) -> Tensor:
        rng = rng_for(self.cell.seed, client="server", purpose="augment")
        return augmented(self._proxy_inputs, self.cell.proxy.augment, rng)

    def _distillation(self) -> dict[str, Any]:
        chosen = self.cell.strategy.distill
        for name in ("memory", "one_at_a_time"):
            if getattr(chosen, name):
                raise ConfigError(
                    f"strategies.{self.cell.label}.distill.{name}: distillation into several "
                    f"models has no such setting, got {getattr(chosen, name)!r}; leave it out"
                )
        return chosen.model_dump(exclude=set(_NOT_HERE))

    def _check(self, shares: tuple[float, ...]) -> None:
        key = f"strategies.{self.cell.label}"
        if len(shares) != len(self._settings):
            raise ConfigError(
                f"{key}.group_shares: there are {len(self._settings)} groups, got {len(shares)} "
                "shares; give one for each"
            )
        for name, settings in self._settings.items():
            try:
                trained_model(settings, self.materials, self.cell.seed)
            except ConfigError as error:
                raise ConfigError(f"{key}.groups: {name} does not fit: {error}") from error
        static = [n for n, one in self._settings.items() if one.norm_statistics == "static"]
        if static and self.cell.proxy.samples < 1:
            raise ConfigError(
                f"{key}.groups: statistics of {static[0]} are estimated on proxy data, and "
                "proxy.samples is 0; set proxy.samples = 500, say"
            )

    @cached_property
    def _proxy_inputs(self) -> Tensor:
        return self.materials.proxy_inputs()


@final
class JointModel(nn.Module):
    """Several models of the same classes, which say the mean of their probabilities."""

    def __init__(self, models: dict[str, nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleDict(models)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs to log-probabilities (batch, classes)."""
        said = torch.stack([model(x).log_softmax(-1) for model in self.models.values()])
        return said.logsumexp(0) - torch.tensor(float(len(said))).log()


def groups_of(cell: Cell) -> dict[str, ModelSettings]:
    """Name the groups by their models; those of one architecture are counted."""
    if cell.strategy.groups is None:
        raise ConfigError(
            f"strategies.{cell.label}.groups: it is not set; name the models, such as "
            '"mlp(hidden=[200]); lenet()"'
        )
    models = read_models(cell.strategy.groups)
    often, seen = Counter(one.name for one in models), Counter[str]()
    named = {}
    for one in models:
        seen[one.name] += 1
        number = f"-{seen[one.name]}" if often[one.name] > 1 else ""
        named[f"{one.name}{number}"] = one
    return named
