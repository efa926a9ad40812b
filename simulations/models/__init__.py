"""The models that simulations train, small enough for many clients on one machine."""

from simulations.models.arrays import load_arrays, model_arrays
from simulations.models.build import MODELS, build_model

__all__ = ["MODELS", "build_model", "load_arrays", "model_arrays"]
