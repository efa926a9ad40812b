"""Speed on ten million parameters: ``python -m benchmarks.large [--json FILE] [--repeat N]``.

Two synthetic updates, seeded: heavy-tailed entries (Student's t of three degrees of freedom) as one
vector, whose length is no power of two, and as a matrix whose rows differ in scale. One thread; all
codecs in turn, medians; speeds are 10⁶ bytes of float32 per second of CPU time.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from benchmarks.codec import SpecCodec
from benchmarks.measure import measure
from benchmarks.rate_distortion import RateDistortion
from benchmarks.tables import rows_table
from benchmarks.updates import Update
from simulations.provenance import commit, machine, versions

SPECS = (
    "quantize(step=0.4) | entropy()",
    "rdo(step=0.4) | entropy()",
    'top_k(0.01) | cast("float16") | entropy()',
    "eden(1) | pack()",
)
_NO_BOUND = RateDistortion(np.ones(1), np.zeros(1))  # tracing it takes minutes at this size


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure here")
    parser.add_argument("--repeat", type=int, default=5, help="timed runs of each (default: 5)")
    parser.add_argument("--size", type=int, default=10_000_003, help="entries of the vector")
    parser.add_argument("--spec", action="append", help="instead of the default specs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    codecs = [SpecCodec(spec) for spec in options.spec or SPECS]
    found = {}
    for name, update in _updates(options.size).items():
        rows = measure(update, codecs, _NO_BOUND, repeat=options.repeat, tell=_tell)
        _tell(f"\n{name}\n\n{rows_table(rows)}")
        found[name] = [asdict(row) for row in rows]
    if options.json:
        report = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "machine": machine(),
            "versions": versions(),
            "repeat": options.repeat,
            "updates": found,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def _updates(size: int) -> Mapping[str, Update]:
    rng = np.random.default_rng(1)
    vector = (rng.standard_t(3, size) * 1e-3).astype(np.float32)
    columns = max(1, round((1.6 * size) ** 0.5))
    rows = max(1, size // columns)
    scales = np.exp(rng.normal(size=(rows, 1)))
    matrix = (rng.standard_t(3, (rows, columns)) * scales * 1e-3).astype(np.float32)
    return {
        f"vector of {size}": {"vector": vector},
        f"matrix of {rows} × {columns}": {"matrix": matrix},
    }


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
