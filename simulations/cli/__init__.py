"""The command line: run, report, list, try, init."""

from simulations.cli.app import app, main

__all__ = ["app", "main"]
