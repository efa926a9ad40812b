"""Engines: places to run one ServerApp and its ClientApps, each a `flwr.serverapp.Grid`."""

from simulations.engines.base import SimulatedGrid
from simulations.engines.client_call import AppFactory
from simulations.engines.local import LocalGrid
from simulations.engines.ray import RayGrid

__all__ = ["AppFactory", "LocalGrid", "RayGrid", "SimulatedGrid"]
