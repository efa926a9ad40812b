"""A model's arrays as Flower sends them, and back."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from torch import nn

from fedcompress.dense import dense_record, dense_values
from simulations.models import load_arrays, model_arrays


def model_record(model: nn.Module) -> ArrayRecord:
    """Write a model's parameters and buffers as dense arrays."""
    return array_record(model_arrays(model))


def array_record(arrays: Mapping[str, np.ndarray[Any, Any]]) -> ArrayRecord:
    """Write named numpy arrays as dense arrays."""
    return dense_record(arrays)


def record_arrays(record: ArrayRecord) -> dict[str, np.ndarray[Any, Any]]:
    """Read dense arrays by name; they may be read-only."""
    return {name: dense_values(array) for name, array in record.items()}


def load_record(model: nn.Module, record: ArrayRecord) -> None:
    """Put dense arrays into a model."""
    load_arrays(model, record_arrays(record))
