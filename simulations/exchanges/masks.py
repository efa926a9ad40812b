"""Masks of a random network travel in place of weights (FedPM)."""

import math
from functools import cached_property
from typing import Any, ClassVar, final

import numpy as np
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fedcompress import rng_for
from fedcompress.errors import ConfigError
from fedcompress.protocol import record_to_tensors, tensors_to_record
from fedcompress.pruning import fold
from simulations.cell import Cell
from simulations.exchanges.exchange import Exchange, Told, Trained
from simulations.exchanges.kept_models import kept_model
from simulations.materials import Materials
from simulations.strategy_settings import MasksSettings
from simulations.training import TrainingPath
from simulations.training.scores import train_probabilities
from strategies.mask_averaged import MaskAveraged


@final
class Masks(Exchange):
    """Nobody trains weights: clients train which weights of a random network to keep.

    All ends draw one network from the seed: weights of one size in each layer, at random signs
    (Ramanujan et al., 2020), and no biases. What is exchanged are the probabilities of keeping
    them (Isik et al., 2023), which begin evenly drawn; see `strategies.MaskAveraged`. The model
    that is tested is the network under one mask drawn from the global probabilities.
    """

    paths: ClassVar[frozenset[TrainingPath]] = frozenset({"eager"})

    def __init__(self, cell: Cell, materials: Materials) -> None:
        super().__init__(cell, materials)
        self._settings = cell.strategy.masks or MasksSettings()
        if next(self._model.buffers(), None) is not None:
            raise ConfigError(
                f"model.name: {cell.model.name!r} keeps statistics of normalisation, which no "
                'mask carries; choose "lenet" or "mlp", or norm_statistics = "static"'
            )

    def start(self) -> ArrayRecord:
        draw = rng_for(self.cell.seed, purpose="masks")
        return tensors_to_record(
            {
                name: torch.from_numpy(draw.random(tuple(x.shape), np.float32))
                for name, x in self._weights.items()
            }
        )

    def model_of(self, arrays: ArrayRecord) -> nn.Module:
        draw = rng_for(self.cell.seed, client="server", purpose="masks")
        kept = record_to_tensors(arrays)
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                if name in self._weights:
                    noise = torch.from_numpy(draw.random(tuple(parameter.shape), np.float32))
                    parameter.copy_(self._weights[name] * (noise < kept[name]))
                else:
                    parameter.copy_(self._fixed[name])
        return self._model

    def train(self, told: Told, context: Context) -> Trained:
        sent = record_to_tensors(told.arrays)
        trained, result = train_probabilities(
            kept_model(self.cell.model, self.materials),
            self._weights,
            self._fixed,
            sent,
            self.materials.data,
            self.materials.rows(told.client),
            told.options,
            rng_for(self.cell.seed, round=told.round, client=told.client, purpose="training"),
            learning_rate=self._settings.learning_rate,
            device=self.cell.device,
        )
        folded = fold(trained, sent)
        # The codec takes the difference to what was sent, which is the folded probabilities.
        return Trained(tensors_to_record({n: x + folded[n] for n, x in sent.items()}), result)

    def strategy(self, inner: Strategy) -> Strategy:
        return MaskAveraged(inner, reset_every=self._settings.reset_every)

    def facts(self, arrays: ArrayRecord) -> dict[str, Any]:
        kept = record_to_tensors(arrays)
        total = sum(x.numel() for x in kept.values())
        return {
            "masks": {
                "entries": total,
                "kept_share": sum(float(x.double().sum()) for x in kept.values()) / total,
            }
        }

    @cached_property
    def _model(self) -> nn.Module:
        return self.new_model()

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        """Draw the random network: the signs of its weights, each layer's of one size."""
        draw = rng_for(self.cell.seed, purpose="masks: weights")
        return {
            name: torch.from_numpy(draw.choice(np.array([-1, 1], np.float32), tuple(x.shape)))
            * math.sqrt(2 / x[0].numel())
            for name, x in self._model.named_parameters()
            if x.dim() > 1
        }

    @cached_property
    def _fixed(self) -> dict[str, Tensor]:
        """Give what no mask is for: biases, which are 0, and scales of normalisation."""
        model = self.new_model()
        return {
            name: torch.zeros_like(x) if name.endswith("bias") or "bias_" in name else x.detach()
            for name, x in model.named_parameters()
            if x.dim() <= 1
        }
