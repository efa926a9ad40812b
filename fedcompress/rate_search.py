"""Searching the step at which a payload meets its budget."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Anything that has a size."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole payload."""


T = TypeVar("T", bound=Sized)

FULL = 0.985  # share of the budget at which we are content
_MOST_TRIALS = 40
_WIDEST = 1 << 40  # ratio of steps from the first guess at which we give up
_NARROWEST = 1e-5  # ratio of steps that makes no difference any more


@dataclass(frozen=True)
class Found(Generic[T]):
    """The largest trial within the budget, and the smallest beyond it, with their steps."""

    within: tuple[float, T] | None
    beyond: tuple[float, T] | None


def search_step(trial: Callable[[float], T], first: float, budget_bytes: int) -> Found[T]:
    """Look for the step whose payload is within a budget and as near to it as can be.

    A payload shrinks as its step grows, about as a power of it and not quite without exception;
    we follow that power from trial to trial, and halve the interval where that gets stuck.

    Parameters
    ----------
    trial : callable
        Encodes at a step.
    first : float
        Step to begin with.
    budget_bytes : int
        The most that a payload may take.
    """
    within: tuple[float, T] | None = None
    beyond: tuple[float, T] | None = None
    aim = (1 + FULL) / 2 * budget_bytes
    step, slope = first, -1.0
    last: tuple[float, float] | None = None
    for number in range(_MOST_TRIALS):
        result = trial(step)
        size = result.size_bytes
        if size <= budget_bytes:
            if within is None or size > within[1].size_bytes:
                within = step, result
        elif beyond is None or size < beyond[1].size_bytes:
            beyond = step, result
        if within is not None and within[1].size_bytes >= FULL * budget_bytes:
            break
        now = math.log(step), math.log(max(size, 1))
        if last is not None and now[0] != last[0] and now[1] != last[1]:
            slope = min(max((now[1] - last[1]) / (now[0] - last[0]), -8.0), -0.05)
        last = now
        following = now[0] + (math.log(aim) - now[1]) / slope
        if within is not None and beyond is not None:
            low, high = math.log(beyond[0]), math.log(within[0])
            if abs(high - low) < _NARROWEST:
                break
            low, high = min(low, high), max(low, high)
            margin = 0.02 * (high - low)
            if number % 3 == 2 or not low + margin < following < high - margin:
                following = (low + high) / 2
        else:
            # No power law reaches further than a few octaves from where it was seen.
            following = min(max(following, now[0] - 3.0), now[0] + 3.0)
        if abs(following - math.log(first)) > math.log(_WIDEST):
            break
        step = math.exp(following)
    return Found(within, beyond)
