"""A byte budget against every single setting that fits in it.

``python -m benchmarks.budgets [--json FILE] [--data-dir DATA] [--models NAME …]``: for each budget
how much of it the payload fills, its error, and the least error of any other chain of the line-up
whose payload is no longer.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import torch

from benchmarks.codec import SpecCodec
from benchmarks.judge import nmse
from benchmarks.line_up import STEPS
from benchmarks.tables import text_table
from benchmarks.updates import TRAININGS, Update, stored_updates, train_update
from fedcompress.errors import BudgetError, ConfigError
from simulations.provenance import commit, machine

BUDGETS = (1.0, 0.1, 0.02)
_KEPT = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
SINGLE_SETTINGS = (
    *(f'quantize(step={s:g}, rounding="nearest") | entropy()' for s in (*STEPS, 8, 12, 16)),
    *(
        f'{by}({k:g}) | cast("float16") | entropy()'
        for by in ("top_k", "global_top_k")
        for k in _KEPT
    ),
    *(f"{by}({k:g}) | quantize(4) | entropy()" for by in ("top_k", "global_top_k") for k in _KEPT),
    *(f"top_k({k:g}) | sign() | entropy()" for k in _KEPT),
    *(f"power_sgd({rank})" for rank in (1, 2, 4, 8)),
    "eden(1) | pack()",
    "sign() | pack()",
)


@final
@dataclass(frozen=True)
class Filled:
    """What a budget gave, and the best of the single settings that fit in it."""

    update: str
    bits_per_parameter: float
    filled: float
    nmse: float
    search_seconds: float
    best_single: str
    best_single_nmse: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budgets", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure here")
    parser.add_argument("--data-dir", help="folder that holds fashion_mnist/")
    parser.add_argument("--models", nargs="*", choices=list(TRAININGS), default=["digits_mlp"])
    parser.add_argument("--updates", type=Path, metavar="FOLDER", help="its .npz as well")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        updates = {name: train_update(name, options.data_dir) for name in options.models}
        if options.updates:
            updates |= stored_updates(options.updates)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    found = [one for name, update in updates.items() for one in fill(name, update)]
    sys.stdout.write(f"{_table(found)}\n")
    if options.json:
        report = {"commit": commit(), "machine": machine(), "rows": [asdict(one) for one in found]}
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def fill(name: str, update: Update) -> list[Filled]:
    """Try every budget, and every single setting once."""
    singles = [(spec, *_send(spec, update)[:2]) for spec in SINGLE_SETTINGS]
    parameters = sum(x.size for x in update.values())
    found = []
    for bits in BUDGETS:
        most = int(bits * parameters / 8)
        try:
            size, error, seconds = _send(f"budget(bits_per_parameter={bits:g})", update)
        except BudgetError as refused:
            sys.stdout.write(f"{name}, {bits:g} bits: {refused}\n")
            continue
        fits = [(lost, spec) for spec, bytes_, lost in singles if bytes_ <= most]
        best = min(fits, default=(1.0, "nothing sent"))
        found.append(Filled(name, bits, size / most, error, seconds, best[1], best[0]))
    return found


def _send(spec: str, update: Update) -> tuple[int, float, float]:
    codec = SpecCodec(spec)
    codec.send(update, want_decoded=False)  # compiles what is not compiled yet
    start = time.process_time()
    sent = codec.send(update, want_decoded=True)
    assert sent.decoded is not None
    return sent.payload_bytes, nmse(update, sent.decoded), time.process_time() - start


def _table(found: Sequence[Filled]) -> str:
    headings = ("update", "bits", "filled", "NMSE", "best single", "its NMSE", "seconds")
    return text_table(
        headings,
        [
            (
                one.update,
                f"{one.bits_per_parameter:g}",
                f"{one.filled:.4f}",
                f"{one.nmse:.4g}",
                one.best_single,
                f"{one.best_single_nmse:.4g}",
                f"{one.search_seconds:.2f}",
            )
            for one in found
        ],
    )


if __name__ == "__main__":
    main()
