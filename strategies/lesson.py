"""What the teachers of one round say of its proxy data."""

import logging
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from fedcompress.distill import Ensemble, predict_logits
from strategies.teachers import Teacher

logger = logging.getLogger(__name__)


@final
class Lesson:
    """A round's proxy data, and its teachers' word on them so far.

    Parameters
    ----------
    model : nn.Module
        Of the teachers' architecture; its weights are overwritten.
    inputs : Tensor
        Proxy data, shape ``(rows, ...)``.
    ensemble : Ensemble
        Takes what the teachers say.
    device : str
        Where to compute.

    Attributes
    ----------
    teachers : int
        How many clients have taught.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, ensemble: Ensemble, device: str) -> None:
        self._model = model
        self.inputs = inputs
        self.ensemble = ensemble
        self._device = device
        self.teachers = 0

    def take(self, teacher: Teacher) -> None:
        """Ask a client's model; one whose logits overflow is logged and teaches nothing."""
        logits = self._ask(teacher.tensors())
        if logits is None:
            logger.warning("node %d teaches nothing: infinite logits", teacher.node_id)
            return
        self.ensemble.add(logits, teacher.weight)
        self.teachers += 1

    def add_anchor(self, average: Mapping[str, Tensor], share: float) -> None:
        """Let the average of the clients' models be a share of the ensemble."""
        logits = self._ask(average) if share > 0 else None
        if logits is not None:
            self.ensemble.add_share(logits, share)

    def add_model(self, arrays: Mapping[str, Tensor]) -> None:
        """Let a model that is no client's be one teacher among equals."""
        logits = self._ask(arrays)
        if logits is not None:
            self.ensemble.add(logits)

    def _ask(self, arrays: Mapping[str, Tensor]) -> Tensor | None:
        self._model.load_state_dict(arrays)
        logits = predict_logits(self._model, self.inputs, device=self._device)
        return logits if bool(torch.isfinite(logits).all()) else None
