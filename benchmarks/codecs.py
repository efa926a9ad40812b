"""Codecs on real updates, ours beside their peers: bytes, error, speed, distance to the limit.

``python -m benchmarks.codecs --help``; see docs/reference/benchmarks.md.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.codec import Codec
from benchmarks.comparison import at_equal_error
from benchmarks.line_up import SPECS, peer_codecs, spec_codecs
from benchmarks.measure import measure
from benchmarks.nncodec_process import NNCodec, NNCodecProcess, quantization_parameters
from benchmarks.rate_distortion import rate_distortion
from benchmarks.tables import comparison_table, rows_table
from benchmarks.updates import TRAININGS, Update, stored_updates, train_update
from fedcompress.errors import ConfigError
from simulations.provenance import commit, machine, versions

_PEERS = ("numba", "bitsandbytes", "pysz")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    options = _options(arguments)
    torch.set_num_threads(1)
    try:
        _run(options)
    except ConfigError as error:
        sys.exit(f"error: {error}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codecs", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure here")
    parser.add_argument("--data-dir", help="folder that holds fashion_mnist/")
    parser.add_argument(
        "--models",
        nargs="*",
        choices=list(TRAININGS),
        help="updates to make (default: those of digits, and with --data-dir all)",
    )
    parser.add_argument("--updates", type=Path, metavar="FOLDER", help="measure its .npz as well")
    parser.add_argument(
        "--spec", action="append", help="instead of the default specs; {} stands for a row of steps"
    )
    parser.add_argument("--nncodec-python", metavar="PATH", help="an interpreter with nncodec")
    parser.add_argument("--no-peers", action="store_true", help="leave the other peers out")
    parser.add_argument("--repeat", type=int, default=5, help="timed runs of each (default: 5)")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> None:
    if options.repeat < 1:
        raise ConfigError(f"--repeat must be at least 1, got {options.repeat}")
    codecs = spec_codecs(options.spec or SPECS, _tell)
    if not options.no_peers:
        codecs += peer_codecs(_tell)
        if not options.nncodec_python:
            _tell(
                "nncodec: not measured; pip install nncodec into an environment of its own and "
                "name that environment's interpreter: --nncodec-python PATH"
            )
    results = []
    for name, update in _updates(options):
        results.append(_measure(name, update, codecs, options))
        if options.json:
            # After each update, so that what is done stays if a later one fails.
            options.json.write_text(json.dumps(_report(results, options), indent=1) + "\n", "utf-8")


def _updates(options: argparse.Namespace) -> Iterator[tuple[str, Update]]:
    names = options.models
    if names is None:
        # A folder of one's own updates is wanted by itself, unless models are named beside it.
        names = [] if options.updates else list(TRAININGS)
    for name in names:
        if TRAININGS[name].data != "digits" and not options.data_dir:
            _tell(
                f"{name}: left out; give the folder that holds {TRAININGS[name].data}: --data-dir"
            )
            continue
        yield name, train_update(name, options.data_dir)
    if options.updates:
        yield from stored_updates(options.updates).items()


def _measure(
    name: str, update: Update, codecs: Sequence[Codec], options: argparse.Namespace
) -> dict[str, Any]:
    parameters = sum(x.size for x in update.values())
    bound = rate_distortion(list(update.values()))
    with ExitStack() as stack:
        peers: list[Codec] = []
        if options.nncodec_python:
            process = stack.enter_context(NNCodecProcess(options.nncodec_python, update))
            peers = [NNCodec(process, qp) for qp in quantization_parameters(update)]
        rows = measure(update, [*codecs, *peers], bound, repeat=options.repeat, tell=_tell)
    compared = at_equal_error(rows, NNCodec.curve)
    _tell(f"\n{name}: {parameters} parameters in {len(update)} arrays\n\n{rows_table(rows)}")
    if compared:
        _tell(f"\n{name}: ours against NNCodec at equal NMSE\n\n{comparison_table(compared)}")
    return {
        "update": name,
        "parameters": parameters,
        "arrays": {key: list(x.shape) for key, x in update.items()},
        "rows": [asdict(row) for row in rows],
        "bound": {
            "nmse": bound.nmse.tolist(),
            "bits_per_parameter": bound.bits_per_parameter.tolist(),
        },
        "nncodec_at_equal_nmse": [asdict(one) for one in compared],
    }


def _report(results: Sequence[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions() | _peer_versions(),
        "repeat": options.repeat,
        "updates": list(results),
    }


def _peer_versions() -> dict[str, str]:
    found = {}
    for name in _PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
