"""`fedcompress try`: one compressor on one update."""

import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedcompress import parse, rng_for
from fedcompress.errors import NotFiniteError
from simulations.cli.arrays import read_arrays

REPEATS = 3
_T = TypeVar("_T")


def show_trial(spec: str, file: Path, *, as_json: bool) -> None:
    """Compress the arrays of a file and print what it costs and loses.

    Raises
    ------
    ConfigError
        If the spec or the file cannot be read.
    NotFiniteError
        If the arrays hold NaN or infinity and the compressor needs finite numbers.
    """
    # Parsed first: a slip in the spec is told before a large file is read.
    compressor, update = str(parse(spec)), read_arrays(file)
    try:
        facts = measure(compressor, update)
    except NotFiniteError as error:
        # The error's own mend is for training; what a file holds can only be looked at.
        raise NotFiniteError(f"try: {file}: {_not_finite(update)}") from error
    if as_json:
        Console().print_json(json.dumps(facts))
    else:
        _show(facts)


def measure(spec: str, update: dict[str, Tensor]) -> dict[str, Any]:
    """Encode and decode an update.

    Parameters
    ----------
    spec : str
        The compressor.
    update : mapping of str to Tensor
        Names to arrays.

    Returns
    -------
    dict
        `payload_bytes`, `bytes_by_stream`, `dense_bytes`, `ratio`, `parameters`,
        `bits_per_parameter`, `nmse` (‖x − x̂‖² / ‖x‖²; None where the update is zero or not
        finite),
        `encode_ms` and `decode_ms` (medians of three).
    """
    compressor = parse(spec)
    state = compressor.init(update)
    (payload, _), encode_ms = _timed(lambda: compressor.encode(update, state, rng_for(0)))
    decoded, decode_ms = _timed(lambda: compressor.decode(payload, update))
    parameters = sum(x.numel() for x in update.values())
    dense_bytes = sum(x.numel() * x.element_size() for x in update.values())
    energy = sum(float(x.double().square().sum()) for x in update.values())
    lost = sum(
        float((x.double() - decoded[name].double()).square().sum()) for name, x in update.items()
    )
    return {
        "spec": spec,
        "parameters": parameters,
        "dense_bytes": dense_bytes,
        "payload_bytes": len(payload),
        "bytes_by_stream": dict(compressor.breakdown(payload, update)),
        "ratio": dense_bytes / len(payload),
        "bits_per_parameter": len(payload) * 8 / parameters if parameters else None,
        "nmse": lost / energy if energy > 0 and math.isfinite(lost + energy) else None,
        "unbiased": compressor.unbiased,
        "encode_ms": encode_ms,
        "decode_ms": decode_ms,
    }


def _not_finite(update: dict[str, Tensor]) -> str:
    for name, values in update.items():
        bad = values.numel() - int(values.isfinite().sum())
        if bad:
            return (
                f"array {name!r} holds NaN or infinity in {bad:,} of {values.numel():,} entries; "
                "give an update of finite numbers, or try raw(), which sends any"
            )
    return "coding it gives NaN or infinity; scale its numbers down, or try raw()"


def _timed(work: Callable[[], _T]) -> tuple[_T, float]:
    result = work()  # the first call also loads libraries; it is not timed
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        result = work()
        taken.append((time.perf_counter() - started) * 1000)
    return result, statistics.median(taken)


def _show(facts: dict[str, Any]) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for stream, count in facts["bytes_by_stream"].items():
        table.add_row(f"{stream} bytes", f"{count:,}")
    table.add_section()
    nmse, bits = facts["nmse"], facts["bits_per_parameter"]
    table.add_row("payload bytes", f"{facts['payload_bytes']:,}")
    table.add_row("dense bytes", f"{facts['dense_bytes']:,}")
    table.add_row("ratio", f"{facts['ratio']:.2f} ×")
    table.add_row("bits per parameter", "–" if bits is None else f"{bits:.3f}")
    table.add_row("NMSE", "–" if nmse is None else f"{nmse:.4g}")
    table.add_row("encode", f"{facts['encode_ms']:.2f} ms")
    table.add_row("decode", f"{facts['decode_ms']:.2f} ms")
    console = Console()
    console.print(facts["spec"], highlight=False, markup=False)
    console.print(table)
