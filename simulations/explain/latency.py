"""Latency of several models on one thread, measured in turn so that all meet the same machine."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from simulations.explain.explained import Latency

MOST_TURNS = 60
FEWEST_TURNS = 12
LONGEST_SECONDS = 12.0
"""Of the turns of one measurement, where the fewest turns take no longer."""
BURST_SECONDS = 1e-3
"""How long a turn's calls take together, so that reading the clock does not show."""
MOST_CALLS = 50


@final
@dataclass(frozen=True)
class Measured:
    """What `interleaved` measured.

    Attributes
    ----------
    latency
        By name.
    calls
        Timed calls in each turn, by name.
    orders
        The names of each turn in the order in which they ran.
    """

    latency: Mapping[str, Latency]
    calls: Mapping[str, int]
    orders: tuple[tuple[str, ...], ...]


def interleaved(runners: Mapping[str, Callable[[], object]], turns: int | None = None) -> Measured:
    """Time calls in turns: each runner once in every turn, and every turn begins with the next.

    A machine that is busy for a while is so for all of them. In its turn a runner is called once
    untimed, so that caches hold its own weights, and then some times in a burst.

    Parameters
    ----------
    runners : mapping of str to callable
        What to time; speed-ups are against the first.
    turns : int, optional
        How many; from the time that calls take where it is not given.

    Returns
    -------
    Measured
        Medians over turns.
    """
    estimate = {name: _estimate(run) for name, run in runners.items()}
    calls = {
        name: min(max(math.ceil(BURST_SECONDS / seconds), 1), MOST_CALLS)
        for name, seconds in estimate.items()
    }
    if turns is None:
        turn_seconds = sum((calls[name] + 1) * seconds for name, seconds in estimate.items())
        turns = min(max(int(LONGEST_SECONDS / turn_seconds), FEWEST_TURNS), MOST_TURNS)
    names = list(runners)
    orders = tuple(
        tuple(names[turn % len(names) :] + names[: turn % len(names)]) for turn in range(turns)
    )
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for order in orders:
        for name in order:
            taken[name].append(_burst(runners[name], calls[name]))
    cpu = {name: np.array([each[0] for each in taken[name]]) for name in names}
    first = cpu[names[0]]
    return Measured(
        {
            name: Latency(
                cpu_us=1e6 * float(np.median(cpu[name])),
                cpu_us_low=1e6 * float(np.quantile(cpu[name], 0.25)),
                cpu_us_high=1e6 * float(np.quantile(cpu[name], 0.75)),
                wall_us=1e6 * float(np.median([each[1] for each in taken[name]])),
                speedup=float(np.median(first / cpu[name])),
            )
            for name in names
        },
        calls,
        orders,
    )


def _estimate(run: Callable[[], object]) -> float:
    """Seconds of a call, the quickest of some, after those that warm up."""
    for _ in range(3):
        run()
    return max(min(_burst(run, 1)[0] for _ in range(3)), 1e-7)


def _burst(run: Callable[[], object], calls: int) -> tuple[float, float]:
    """Seconds of a call, by the thread's time and by the clock."""
    run()
    wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
    for _ in range(calls):
        run()
    cpu, wall = time.thread_time_ns() - cpu, time.perf_counter_ns() - wall
    # A clock that is too coarse to see a call says 0.
    return max(cpu, 1) / calls / 1e9, max(wall, 1) / calls / 1e9
