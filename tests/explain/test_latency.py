"""Models take turns, and each turn begins with another."""

from __future__ import annotations

from collections import Counter

import pytest

from simulations.explain.latency import interleaved


def test_every_model_has_its_turn_and_none_is_always_first() -> None:
    asked: list[str] = []
    runners = {name: lambda n=name: asked.append(n) for name in ("dense", "a", "b")}
    measured = interleaved(runners, turns=6)
    assert measured.orders[:3] == (("dense", "a", "b"), ("a", "b", "dense"), ("b", "dense", "a"))
    assert Counter(order[0] for order in measured.orders) == {"dense": 2, "a": 2, "b": 2}
    # What ran last is what the last turn says.
    runs = [name for at, name in enumerate(asked) if at == 0 or asked[at - 1] != name]
    assert tuple(runs[-3:]) == measured.orders[-1]
    for name in runners:
        assert asked.count(name) >= 6 * (measured.calls[name] + 1)


def test_speed_is_against_the_first() -> None:
    def work(amount: int) -> None:
        sum(range(amount))

    measured = interleaved({"dense": lambda: work(40_000), "small": lambda: work(4_000)}, turns=9)
    dense, small = measured.latency["dense"], measured.latency["small"]
    assert dense.speedup == 1
    assert small.speedup > 3
    assert small.cpu_us < dense.cpu_us
    assert dense.cpu_us_low <= dense.cpu_us <= dense.cpu_us_high
    assert small.wall_us == pytest.approx(small.wall_us)


def test_quick_calls_are_timed_in_bursts() -> None:
    measured = interleaved({"quick": lambda: None, "slow": lambda: sum(range(300_000))}, turns=2)
    assert measured.calls["quick"] > measured.calls["slow"]
