"""Momentum on the client: what is sent is a running mean of its updates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.chain import as_compressor, narrow
from fedcompress.checks import check_fraction
from fedcompress.compressor import Compressor, Encoded, Part, State, under
from fedcompress.errors import LayoutError, SpecError
from fedcompress.wire import SectionReader

_VELOCITY = "velocity/"
_INNER = "inner/"
_STARTED = "started"


@dataclass(frozen=True, repr=False)
class Momentum(Compressor):
    """Send v ← beta · v + (1 − beta) · x in place of each update x, from v = x at first. Biased.

    Fatkhullin, Tyurin and Richtárik (2023), "Momentum provably improves error feedback!":
    around `ef21` it is their EF21-SGDM with η = 1 − beta. The running mean is less noisy than
    an update, so successive ones are alike and their difference is cheap. It is as large as an
    update, unlike a velocity that sums up, so the server's learning rate stays as it is. State:
    one velocity for each floating-point array.

    Parameters
    ----------
    compressor : Compressor
        What sends the running mean.
    beta : float
        Weight of what came before, in (0, 1).
    """

    name: ClassVar[str] = "momentum"
    corrects: ClassVar[bool] = True

    compressor: Compressor
    beta: float = 0.9

    def __post_init__(self) -> None:
        object.__setattr__(self, "compressor", as_compressor(self.compressor, self.name))
        object.__setattr__(self, "beta", check_fraction(self.name, "beta", self.beta))
        if self.beta == 1:
            raise SpecError("momentum: beta must be below 1, or the first update is sent for ever")

    @property
    def unbiased(self) -> bool:
        """Never: earlier updates are part of what is sent."""
        return False

    def inside(self) -> Sequence[Compressor]:
        """Give the compressor that sends."""
        return (self.compressor,)

    def init_state(self, like: Mapping[str, Tensor]) -> State:
        """Start without a velocity."""
        inner = self.compressor.init_state(like)
        return {
            **{
                _VELOCITY + name: torch.zeros_like(x, dtype=_velocity_dtype(x.dtype))
                for name, x in like.items()
                if x.is_floating_point()
            },
            _STARTED: torch.tensor(0),
            **{_INNER + name: x for name, x in inner.items()},
        }

    def after_absence(self, state: State, rounds: int) -> State:
        """Keep the velocity."""
        inner = self.compressor.after_absence(under(state, _INNER), rounds)
        return {**state, **{_INNER + name: x for name, x in inner.items()}}

    def encode_sections(
        self,
        update: Mapping[str, Tensor],
        state: State,
        rng: np.random.Generator,
        want_decoded: bool,
    ) -> Encoded:
        """Send the running mean."""
        velocities = {
            name: self._advance(name, x, state)
            for name, x in update.items()
            if x.is_floating_point()
        }
        sendable = {
            name: narrow(velocities[name], x.dtype) if name in velocities else x
            for name, x in update.items()
        }
        inner = self.compressor.encode_sections(sendable, under(state, _INNER), rng, want_decoded)
        new_state = {
            **{_VELOCITY + name: x for name, x in velocities.items()},
            _STARTED: torch.tensor(1),
            **{_INNER + name: x for name, x in inner.state.items()},
        }
        return Encoded(inner.sections, new_state, inner.decoded)

    def read_sections(
        self, reader: SectionReader, like: Mapping[str, Tensor]
    ) -> Mapping[str, Part]:
        """Read as the compressor inside does."""
        return self.compressor.read_sections(reader, like)

    def __str__(self) -> str:
        beta = "" if self.beta == 0.9 else f", beta={self.beta}"
        return f"{self.name}({self.compressor}{beta})"

    def __repr__(self) -> str:
        return str(self)

    def _advance(self, name: str, x: Tensor, state: State) -> Tensor:
        velocity, started = state.get(_VELOCITY + name), state.get(_STARTED)
        if velocity is None or started is None or velocity.shape != x.shape:
            raise LayoutError(
                f"{self.name}: the state holds no velocity of array {name!r} of shape "
                f"{tuple(x.shape)}; make the state with init() on the same arrays"
            )
        x = x.to(velocity.dtype)
        return velocity.to(x.device) * self.beta + x * (1 - self.beta) if int(started) else x


def _velocity_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
