"""Engines: places to run one ServerApp and its ClientApps, each a `flwr.serverapp.Grid`.

They are imported when they are asked for: a process may start what workers are forked from
(`simulations.engines.fork_start`) before it imports torch and Flower itself.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulations.engines.base import SimulatedGrid
    from simulations.engines.client_call import AppFactory
    from simulations.engines.local import LocalGrid
    from simulations.engines.ray import RayGrid

__all__ = ["AppFactory", "LocalGrid", "RayGrid", "SimulatedGrid"]

_MODULES = {
    "AppFactory": "client_call",
    "LocalGrid": "local",
    "RayGrid": "ray",
    "SimulatedGrid": "base",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
