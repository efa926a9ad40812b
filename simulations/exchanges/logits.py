"""Predictions of proxy rows travel in place of models (FedMD, DS-FL)."""

from functools import cached_property
from typing import ClassVar, final

import numpy as np
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fedcompress import rng_for
from fedcompress.distill import distil
from fedcompress.errors import ConfigError, NotFiniteError
from simulations.cell import Cell
from simulations.exchanges.exchange import Exchange, Told, Trained
from simulations.exchanges.kept_models import kept_model
from simulations.materials import Materials
from simulations.model_record import array_record, load_record, model_record, record_arrays
from simulations.strategy_settings import LogitsSettings
from simulations.training import train_locally
from strategies.predictions import predict_scores, target_logits
from strategies.sharpened import ARRAY, ROUND_KEY, Sharpened

STATE_KEY = "own-model"
WEIGHT = "weight"


@final
class Logits(Exchange):
    """Each client keeps a model of its own and sends what it predicts of proxy rows.

    A client follows the mean of the last round on the proxy rows, trains on its own rows, and
    predicts (Li & Wang, 2019; Itahara et al., 2021). Its model lies in its `Context.state`.
    How models follow is set by the strategy's `distill`, but for the number of steps.
    """

    weighted_by: ClassVar[str] = WEIGHT

    def __init__(self, cell: Cell, materials: Materials) -> None:
        super().__init__(cell, materials)
        self._settings = cell.strategy.logits or LogitsSettings()
        self._sharpened: Sharpened | None = None
        if cell.model.norm_statistics == "static":
            raise ConfigError(
                f"strategies.{cell.label}: models stay where they are trained, and their "
                'statistics with them; set model.norm_statistics = "running"'
            )

    def start(self) -> ArrayRecord:
        shape = (len(self._inputs(1)), self.materials.data.num_classes)
        return array_record({ARRAY: np.zeros(shape, np.float32)})

    def model_of(self, arrays: ArrayRecord) -> nn.Module:
        return self._first_model if self._sharpened is None else self._sharpened.model

    def strategy(self, inner: Strategy) -> Strategy:
        self._check_rows()
        chosen, following = self._settings, self.cell.strategy.distill
        self._sharpened = Sharpened(
            inner,
            model=self._first_model,
            inputs=self._inputs,
            scores=chosen.scores,
            sharpen=chosen.sharpen,
            redraw=chosen.redraw,
            steps=chosen.digest_steps,
            temperature=following.temperature,
            batch_size=following.batch_size,
            learning_rate=following.learning_rate,
            patience=following.patience,
            holdout_fraction=following.holdout_fraction,
            seed=self.cell.seed,
            device=self.cell.device,
        )
        return self._sharpened

    def train(self, told: Told, context: Context) -> Trained:
        model = kept_model(self.cell.model, self.materials)
        own = context.state.get(STATE_KEY)
        load_record(model, own if isinstance(own, ArrayRecord) else self._first_record)
        mean = torch.from_numpy(np.array(record_arrays(told.arrays)[ARRAY], np.float32))
        self._digest(model, mean, told)
        result = train_locally(
            model,
            self.materials.data,
            self.materials.rows(told.client),
            told.options,
            rng_for(self.cell.seed, round=told.round, client=told.client, purpose="training"),
            self.cell.device,
            self.cell.training.path,
        )
        scores = predict_scores(
            model, self._inputs(told.round), self._settings.scores, device=self.cell.device
        )
        # With other rows in each round the difference to what was sent is to be the scores.
        sent = scores + mean if self._settings.redraw else scores
        model.to("cpu")
        context.state[STATE_KEY] = model_record(model)
        return Trained(
            array_record({ARRAY: sent.numpy()}), result, {WEIGHT: self._weight(result.num_examples)}
        )

    def data_facts(self) -> dict[str, str]:
        proxy = self.materials.proxy_facts() or {}
        return {**super().data_facts(), "proxy data": str(proxy.get("fingerprint", "none"))}

    def _digest(self, model: nn.Module, mean: Tensor, told: Told) -> None:
        """Let the client's model follow the mean, of the round that it is of."""
        predicted_round = told.config.get(ROUND_KEY, 0)
        if not isinstance(predicted_round, int) or predicted_round < 1:
            return
        chosen, following = self._settings, self.cell.strategy.distill
        try:
            distil(
                model,
                self._inputs(predicted_round),
                target_logits(mean, chosen.scores, chosen.sharpen),
                rng=rng_for(self.cell.seed, round=told.round, client=told.client, purpose="digest"),
                steps=chosen.digest_steps,
                temperature=following.temperature,
                batch_size=following.batch_size,
                learning_rate=following.learning_rate,
                patience=following.patience,
                holdout_fraction=following.holdout_fraction,
                device=self.cell.device,
            )
        except NotFiniteError as error:
            raise NotFiniteError(
                f"client {told.client}: its model or the mean is not finite, so it cannot follow: "
                f"{error}"
            ) from error

    def _weight(self, examples: int) -> float:
        return float(examples if self._settings.weighting == "examples" else examples > 0)

    def _inputs(self, server_round: int) -> Tensor:
        """Give the proxy rows of a round: the same for the server and for every client."""
        drawn = rng_for(
            self.cell.seed,
            round=server_round if self._settings.redraw else 0,
            client="server",
            purpose="proxy rows",
        )
        count = len(self._proxy_inputs)
        return self._proxy_inputs[drawn.choice(count, size=self._settings.rows, replace=False)]

    def _check_rows(self) -> None:
        if self.cell.proxy.samples == 0:
            raise ConfigError(
                f"strategies.{self.cell.label}: predictions are of proxy data, and proxy.samples "
                f"is 0; set proxy.samples = {self._settings.rows}, say"
            )
        if len(self._proxy_inputs) < self._settings.rows:
            raise ConfigError(
                f"strategies.{self.cell.label}.logits.rows: there are {len(self._proxy_inputs)} "
                f"proxy rows, got {self._settings.rows}; set fewer, or more proxy.samples"
            )

    @cached_property
    def _proxy_inputs(self) -> Tensor:
        return self.materials.proxy_inputs()

    @cached_property
    def _first_model(self) -> nn.Module:
        return self.new_model()

    @cached_property
    def _first_record(self) -> ArrayRecord:
        return model_record(self.new_model())
