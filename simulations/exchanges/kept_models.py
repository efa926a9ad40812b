"""Models as clients train them, built anew, or kept by a worker between calls."""

from torch import nn

from simulations.materials import Materials
from simulations.model_settings import ModelSettings
from simulations.models import drop_statistics

MOST_KEPT = 8
_MODELS: dict[tuple[ModelSettings, str], nn.Module] = {}


def trained_model(settings: ModelSettings, materials: Materials, seed: int) -> nn.Module:
    """Build a model as clients train it: without statistics where those are static."""
    model = materials.new_model(settings, seed)
    if settings.norm_statistics == "static":
        drop_statistics(model)
    return model


def kept_model(settings: ModelSettings, materials: Materials) -> nn.Module:
    """Give a model as clients train it, whose values are whatever was left in it.

    Load every array of it before use. What training looks up of a model once is found again.
    """
    key = (settings, materials.data.name)
    if key not in _MODELS:
        while len(_MODELS) >= MOST_KEPT:
            del _MODELS[next(iter(_MODELS))]
        _MODELS[key] = trained_model(settings, materials, seed=0)
    return _MODELS[key]
