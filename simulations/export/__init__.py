"""Deployment: prune, quantize and write a trained model, and check what was written."""

from simulations.export.archive import Head, load_archive, read_archive, write_archive
from simulations.export.deployable import Deployable, load_deployable
from simulations.export.export import Exported, export_model
from simulations.export.recipe import FORMATS, Recipe, read_recipe
from simulations.export.standard import load_safetensors
from simulations.export.verify import Verified, verify

__all__ = [
    "FORMATS",
    "Deployable",
    "Exported",
    "Head",
    "Recipe",
    "Verified",
    "export_model",
    "load_archive",
    "load_deployable",
    "load_safetensors",
    "read_archive",
    "read_recipe",
    "verify",
    "write_archive",
]
