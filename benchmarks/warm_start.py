"""PowerSGD with and without warm start, on ten successive updates of one client in training.

``python -m benchmarks.warm_start [--data-dir DATA] [--models NAME ...] [--rank 4] [--steps 1]``:
NMSE of each update of one local epoch, encoded from what the update before left, and from a random
start, with one step as published (Vogels et al., 2019) or more.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from benchmarks.judge import nmse
from benchmarks.tables import text_table
from benchmarks.updates import TRAININGS, Update, successive_updates
from fedcompress import parse, rng_for
from fedcompress.errors import ConfigError

UPDATES = 10


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.warm_start", description=__doc__)
    parser.add_argument("--data-dir", help="folder that holds fashion_mnist/")
    parser.add_argument("--models", nargs="*", choices=list(TRAININGS), default=["digits_mlp"])
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1, help="of power iteration (default: 1)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines = []
    try:
        for name in options.models:
            updates = list(successive_updates(name, UPDATES, options.data_dir))
            for start in ("yes", "no"):
                errors = list(_errors(updates, options.rank, options.steps, start))
                mean = f"{statistics.fmean(errors):.3f}"
                lines.append((name, start, *(f"{error:.3f}" for error in errors), mean))
    except ConfigError as error:
        sys.exit(f"error: {error}")
    numbers = (str(number) for number in range(1, UPDATES + 1))
    sys.stdout.write(f"{text_table(('update', 'warm start', *numbers, 'mean'), lines)}\n")


def _errors(updates: Sequence[Update], rank: int, steps: int, start: str) -> Iterator[float]:
    compressor = parse(f'power_sgd({rank}, warm_start="{start}", steps={steps})')
    state = compressor.init(updates[0])
    for number, update in enumerate(updates):
        payload, state = compressor.encode(update, state, rng_for(0, round=number))
        decoded = compressor.decode(payload, update)
        yield nmse(update, {name: np.asarray(x) for name, x in decoded.items()})


if __name__ == "__main__":
    main()
