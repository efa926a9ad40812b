"""RayGrid beside other simulators and beside bare processes: time, start-up, memory.

``python -m benchmarks.engines --help``; every run has a process of its own with one thread per
worker, and the engines of a row take turns. See docs/reference/benchmarks.md.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.engine_process import EngineFailedError, Interpreters, run_job
from benchmarks.engine_rows import ENGINES, OURS, Job, Row, chosen_rows, rows
from benchmarks.engine_table import bars_table, judge, medians, row_table
from fedcompress.errors import ConfigError
from simulations.cell import Cell
from simulations.materials import materials_of
from simulations.provenance import commit, machine, versions


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    options = _options(arguments)
    try:
        _run(options)
    except ConfigError as error:
        sys.exit(f"error: {error}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure here")
    parser.add_argument("--data-dir", help="folder that holds fashion_mnist/")
    parser.add_argument(
        "--rows", nargs="*", default=[], metavar="NAME", help=f"of {', '.join(rows())}"
    )
    parser.add_argument("--engines", nargs="*", choices=ENGINES, help="leave the others out")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each (default: 5)")
    parser.add_argument("--rounds", type=int, help="rounds measured in each run")
    parser.add_argument(
        "--peer-python",
        metavar="PATH",
        help="an interpreter that has peers (pfl) beside what fedcompress needs",
    )
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> None:
    for name in ("repeat", "rounds"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1, got {value}")
    interpreters = Interpreters(options.peer_python)
    measured: dict[str, Any] = {}
    for name, row in chosen_rows(options.rows).items():
        jobs = _wanted(name, row, options, interpreters)
        if not jobs:
            continue
        measured[name] = _measure(row, jobs, options, interpreters)
        if options.json:
            # After each row, so that what is done stays if a later one fails.
            options.json.write_text(
                json.dumps(_report(measured, options), indent=1) + "\n", "utf-8"
            )
    made = commit() or "outside a clone"
    place = machine()
    _tell(f"\n{place['processor']}, {place['cores']} cores, commit {made}\n")
    _tell(bars_table({one["title"]: one["bars"] for one in measured.values()}))


def _wanted(
    name: str, row: Row, options: argparse.Namespace, interpreters: Interpreters
) -> dict[str, Job]:
    """Give the jobs that can run here, with as many rounds as are asked for."""
    jobs: dict[str, Job] = {}
    for label, job in row.jobs.items():
        if options.engines is not None and job.engine not in options.engines:
            continue
        if job.workload.data != "digits" and not options.data_dir:
            _tell(f"{name}: left out; give the folder that holds {job.workload.data}: --data-dir")
            return {}
        missing = interpreters.missing(job.engine)
        if missing is not None:
            _tell(f"{name}: {label} left out: {missing}")
            continue
        rounds = options.rounds or job.workload.rounds
        jobs[label] = replace(job, workload=replace(job.workload, rounds=rounds))
    return jobs


def _measure(
    row: Row, jobs: Mapping[str, Job], options: argparse.Namespace, interpreters: Interpreters
) -> dict[str, Any]:
    _warm(jobs, options, interpreters)
    runs: dict[str, list[dict[str, Any]]] = {label: [] for label in jobs}
    failures: dict[str, str] = {}
    labels = list(jobs)
    for turn in range(options.repeat):
        first = turn % len(labels)
        for label in labels[first:] + labels[:first]:
            if label in failures:
                continue
            try:
                runs[label].append(run_job(jobs[label], options.data_dir, interpreters))
            except EngineFailedError as error:
                failures[label] = str(error)
                _tell(f"{row.title}: {label} failed: {error}")
    figures = {label: medians(found) for label, found in runs.items() if found}
    bars = judge(row.bars, figures)
    _tell(f"\n{row.title}\n\n{row_table(figures)}")
    if bars:
        _tell(f"\n{bars_table({row.title: bars})}")
    return {
        "title": row.title,
        "jobs": {label: job.to_json() for label, job in jobs.items()},
        "runs": runs,
        "failures": failures,
        "medians": figures,
        "bars": bars,
    }


def _warm(jobs: Mapping[str, Job], options: argparse.Namespace, interpreters: Interpreters) -> None:
    """Let everything be made that is cached on the disk, data and compiled code, before timing."""
    for job in jobs.values():
        materials_of(Cell.from_run_config(job.workload.run_config(options.data_dir)))
    small = {
        replace(job.workload, clients=100, per_round=10, rounds=1)
        for job in jobs.values()
        if job.engine in OURS
    }
    for workload in sorted(small, key=repr):
        # What is wrong with it shows again, and is told, when it is measured.
        with suppress(EngineFailedError):
            run_job(Job("raygrid", workload), options.data_dir, interpreters)


def _report(measured: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "repeat": options.repeat,
        "rows": measured,
    }


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
