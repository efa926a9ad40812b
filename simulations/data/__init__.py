"""Data sets as read-only arrays: loaded from anywhere by one path, decoded once, mapped after."""

from simulations.data.federated import FederatedData
from simulations.data.load import load_data

__all__ = ["FederatedData", "load_data"]
