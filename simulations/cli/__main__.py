"""`python -m simulations.cli`: the command where it is not installed."""

from simulations.cli.app import main

main()
