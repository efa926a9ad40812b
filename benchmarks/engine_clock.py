"""When rounds end, and what the processes use meanwhile: the same for every engine."""

import os
import time
from dataclasses import dataclass, field
from typing import Any, final

from torch import nn

from benchmarks.engine_processes import peak_mb, tree_cpu_seconds, worker_pss_mb
from benchmarks.engine_rows import SKIPPED_ROUNDS
from simulations.data import FederatedData
from simulations.training import evaluate

STARTED = "FEDCOMPRESS_BENCHMARK_STARTED"
"""Names the environment variable with the time at which the command was given."""
TESTED = 2000
"""Rows of the test data that the last model is tried on."""


@final
@dataclass
class Clock:
    """Stamps of one run, taken in the process that drives it.

    The time between two rounds that this clock itself takes, to look into /proc, is not counted.
    """

    last_round: int
    workers: list[int] | None = None
    _began: list[float] = field(default_factory=list)
    _ended: list[float] = field(default_factory=list)
    _figures: dict[str, Any] = field(default_factory=dict)

    def start(self) -> None:
        """Note that the first round begins."""
        self._figures["start_seconds"] = _since_command()
        self._began.append(time.perf_counter())

    def round_ended(self, number: int, uncounted: float = 0.0) -> None:
        """Note that a round has ended, and that the next begins; `uncounted` seconds are cut."""
        self._ended.append(time.perf_counter() - uncounted)
        if number == 1:
            self._figures["first_round_seconds"] = _since_command()
        if number == SKIPPED_ROUNDS:
            self._figures["worker_pss_mb"] = _mean(worker_pss_mb(self.workers))
            self._figures["cpu"] = tree_cpu_seconds()
        if number == (SKIPPED_ROUNDS + self.last_round) // 2:
            self._figures["worker_pss_half_mb"] = _mean(worker_pss_mb(self.workers))
        if number == self.last_round:
            self._figures["cpu"] = tree_cpu_seconds() - self._figures["cpu"]
            sizes = worker_pss_mb(self.workers)
            self._figures["worker_pss_end_mb"] = _mean(sizes)
            self._figures["workers"] = len(sizes)
        self._began.append(time.perf_counter())

    def test(self, model: nn.Module, data: FederatedData) -> None:
        """Note what the last model reached, which shows that an engine has trained."""
        found = evaluate(model, data.test_x[:TESTED], data.test_y[:TESTED], data)
        self._figures |= {"accuracy": found.accuracy, "loss": found.loss}

    def figures(self) -> dict[str, Any]:
        """Give what was measured; `rounds` are the seconds of every round, the first included."""
        rounds = [ended - began for began, ended in zip(self._began, self._ended, strict=False)]
        figures = dict(self._figures)
        figures["cpu_seconds"] = figures.pop("cpu") / (len(rounds) - SKIPPED_ROUNDS)
        return figures | {"rounds": rounds, "driver_peak_mb": peak_mb()}


def _since_command() -> float:
    return time.time() - float(os.environ[STARTED])


def _mean(sizes: list[float]) -> float | None:
    return sum(sizes) / len(sizes) if sizes else None
