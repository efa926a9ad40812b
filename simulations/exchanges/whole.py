"""The whole model travels: down to each client, and back as it was trained."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cached_property
from typing import ClassVar, final

from flwr.app import ArrayRecord, Context
from torch import Tensor, nn

from fedcompress import rng_for
from fedcompress.errors import ConfigError
from simulations.cell import Cell
from simulations.exchanges.exchange import Exchange, Told, Trained
from simulations.exchanges.kept_models import kept_model
from simulations.materials import Materials
from simulations.model_record import load_record, model_record
from simulations.models import estimate_statistics
from simulations.training import CohortMember, TrainingPath, train_cohort, train_locally


@final
class WholeModel(Exchange):
    """The global model itself, as federated averaging sends it (McMahan et al., 2017)."""

    paths: ClassVar[frozenset[TrainingPath]] = frozenset({"eager", "compiled", "cohort"})

    distils: ClassVar[bool] = True

    def __init__(self, cell: Cell, materials: Materials) -> None:
        super().__init__(cell, materials)
        if self._is_static and cell.proxy.samples < 1:
            raise ConfigError(
                'model.norm_statistics: "static" statistics are estimated on proxy data, and '
                "proxy.samples is 0; set proxy.samples = 500, say"
            )

    def start(self) -> ArrayRecord:
        return model_record(self._model)

    def model_of(self, arrays: ArrayRecord) -> nn.Module:
        load_record(self._model, arrays)
        if not self._is_static:
            return self._model
        tested = deepcopy(self._model)
        estimate_statistics(tested, self._proxy_inputs)
        return tested

    def train(self, told: Told, context: Context) -> Trained:
        model = kept_model(self.cell.model, self.materials)
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

    def train_together(
        self, told: Sequence[Told], contexts: Sequence[Context]
    ) -> Iterator[Trained]:
        first = told[0]
        for other in told[1:]:
            if (other.key, other.arrays, other.round, other.options) != (
                *(first.key, first.arrays, first.round, first.options),
            ):
                raise ValueError("the clients of a cohort were not sent the same")
        model = kept_model(self.cell.model, self.materials)
        load_record(model, first.arrays)
        members = [
            CohortMember(
                self.materials.rows(one.client),
                rng_for(self.cell.seed, round=one.round, client=one.client, purpose="training"),
            )
            for one in told
        ]
        cohort = train_cohort(model, self.materials.data, members, first.options, self.cell.device)
        for place, result in enumerate(cohort.results):
            cohort.load(place)
            yield Trained(model_record(model), result)

    @property
    def _is_static(self) -> bool:
        return self.cell.model.norm_statistics == "static"

    @cached_property
    def _model(self) -> nn.Module:
        return self.new_model()

    @cached_property
    def _proxy_inputs(self) -> Tensor:
        return self.materials.proxy_inputs()
