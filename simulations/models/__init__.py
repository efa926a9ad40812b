"""The models that simulations train, small enough for many clients on one machine."""

from simulations.models.arrays import load_arrays, model_arrays
from simulations.models.build import MODELS, build_model
from simulations.models.static_norms import drop_statistics, estimate_statistics

__all__ = [
    "MODELS",
    "build_model",
    "drop_statistics",
    "estimate_statistics",
    "load_arrays",
    "model_arrays",
]
