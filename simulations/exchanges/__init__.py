"""What the server and a client exchange: whole models, or something in their place."""

from simulations.exchanges.registry import EXCHANGES

__all__ = ["EXCHANGES"]
