"""Bits by importance: quantization steps that follow what was learnt of each array."""

import math
from collections.abc import Callable, Mapping
from typing import final

from fedcompress.checks import check_positive
from fedcompress.errors import ConfigError
from fedcompress.pruning.importance import sensitivity
from strategies.pruned import Pruned


def adaptive_uplink(
    pruned: Pruned, *, step: float = 0.4, strength: float = 0.25, most: float = 3.0
) -> Callable[[int, int], str]:
    """Make an uplink whose steps are finer for arrays to which the loss is more sensitive.

    An error ``e`` in an entry costs ``F e² / 2``, with the diagonal ``F`` of the Fisher
    information, for which the running mean of squared updates stands (see
    `fedcompress.pruning.fisher`). An array whose mean ``F`` is ``r`` times the model's geometric
    mean gets ``step / r ** strength``. With the pattern `across_layers` importance so sets both:
    how many entries of an array are kept, and how many bits each of them gets.

    Parameters
    ----------
    pruned : Pruned
        What stands inside `Compressed`; with ``remembers=True``.
    step : float
        Of `quantize`, in standard deviations of an array's update; before there is an importance
        every array has it.
    strength : float
        How far steps follow importance, above 0.
    most : float
        Factor by which a step may differ from ``step`` at most, at least 1.

    Returns
    -------
    callable
        For ``Compressed(pruned, uplink=...)``: node and round to a spec. A function of what
        ``pruned`` remembers alone, so a resumed run gives the same.

    Raises
    ------
    ConfigError
        If ``pruned`` remembers nothing, or a setting is out of range.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> from fedcompress import Compressed
    >>> from fedcompress.pruning import Schedule, across_layers
    >>> pruned = Pruned(
    ...     FedAvg(), schedule=Schedule(0.8, 3, 9, 3), pattern=across_layers, remembers=True
    ... )
    >>> strategy = Compressed(pruned, uplink=adaptive_uplink(pruned))
    """
    if not pruned.remembers:
        raise ConfigError(
            "adaptive_uplink: the strategy remembers no updates to learn importance from; "
            "write Pruned(..., remembers=True)"
        )
    for name, value in (("step", step), ("strength", strength), ("most", most)):
        check_positive("adaptive_uplink", name, value)
    if most < 1:
        raise ConfigError(f"adaptive_uplink: most must be at least 1, got {most:g}")
    return _AdaptiveUplink(pruned, step, strength, most)


@final
class _AdaptiveUplink:
    """What `adaptive_uplink` makes; the spec is written once for each round."""

    def __init__(self, pruned: Pruned, step: float, strength: float, most: float) -> None:
        self._pruned = pruned
        self._step, self._strength, self._most = step, strength, most
        self._written: tuple[int, str] = 0, ""

    def __call__(self, node_id: int, server_round: int) -> str:
        if self._written[0] != server_round:
            self._written = server_round, self._spec()
        return self._written[1]

    def _spec(self) -> str:
        sensitive = sensitivity(self._pruned.updates, self._pruned.mask)
        usual = _of_step(self._step)
        steps = _steps(sensitive, self._step, self._strength, self._most)
        if not steps:
            return usual
        rules = ", ".join(f"{_quoted(name)}: {_of_step(step)}" for name, step in steps.items())
        return f"route({{{rules}}}, default={usual})"


def _steps(
    sensitive: Mapping[str, tuple[float, int]], step: float, strength: float, most: float
) -> dict[str, float]:
    known = {name: of for name, of in sensitive.items() if of[0] > 0 and of[1] > 0}
    if not known:
        return {}
    entries = sum(count for _, count in known.values())
    middle = sum(count * math.log(value) for value, count in known.values()) / entries
    steps = {}
    for name, (value, _) in known.items():
        factor = math.exp(-strength * (math.log(value) - middle))
        # Two digits: a spec that is almost that of the round before would be parsed anew.
        steps[name] = float(f"{step * min(most, max(1 / most, factor)):.2g}")
    return steps


def _of_step(step: float) -> str:
    return f"quantize(step={step}) | entropy()"


def _quoted(name: str) -> str:
    """Write a name as a pattern that only it meets."""
    text = "".join(f"[{c}]" if c in "*?[" else c for c in name)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
