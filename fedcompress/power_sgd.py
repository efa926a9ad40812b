"""Low-rank factors of matrices, with a warm start."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcompress.chain import as_compressor, chain, narrow
from fedcompress.checks import check_choice, check_integer
from fedcompress.coders.raw import Raw, decode_plain, encode_plain
from fedcompress.compressor import Compressor, Encoded, Part, State, all_inside, under
from fedcompress.errors import LayoutError, NotFiniteError, PayloadError, SpecError
from fedcompress.magnitude import without_exponent
from fedcompress.randomness import rng_for
from fedcompress.spec_text import call_text
from fedcompress.stages.cast import Cast
from fedcompress.streams import Layout, Scale, ScaleForm
from fedcompress.wire import Section, SectionReader

_START, _FACTORS, _REST = "start/", "factors/", "rest/"
_FLOAT16 = chain(Cast("float16"), Raw())
_RAW = chain(Raw())


@dataclass(frozen=True, repr=False)
class PowerSGD(Compressor):
    """Send every matrix as the product of two thin ones. Biased; put error feedback around it.

    Vogels et al. (2019), "PowerSGD: practical low-rank gradient compression for distributed
    optimization": steps of P = orthogonal columns of M Q, Q = Mᵀ P; the other side decodes P Qᵀ.
    With a warm start the next update begins from this Q, and over rounds the subspace nears
    that of the largest singular values. An array of shape (a, b, …) is a matrix of a rows;
    vectors, and matrices that their factors would not make smaller, are sent otherwise.

    Beyond the paper, so that factors can be sent at low rates: both are turned to singular
    vectors times their singular value, after which one step of quantization serves all their
    columns and faint ones round to zero; and a gain for each column, sent along, brings the
    decoded product as near to M as can be.

    Parameters
    ----------
    rank : int
        Columns of P and of Q, 1 to 4096.
    factors : Compressor
        What sends P above Q, one array for each matrix. Float16 errs by a part in 2**11, far
        less than what the rank leaves out; a coarse `quantize` behind an entropy coder takes a
        fifth of the bytes at nearly the same error.
    rest : Compressor
        What sends arrays that are not factored.
    warm_start : {"yes", "no"}
        Whether Q is remembered from round to round, else drawn anew.
    steps : int
        Steps of subspace iteration, 1 to 100. The paper takes one, since among its workers each
        would be a message of its own; on a client it costs time only. Three come near the best
        approximation of the rank.
    """

    name: ClassVar[str] = "power_sgd"

    rank: int
    factors: Compressor = _FLOAT16
    rest: Compressor = _RAW
    warm_start: str = "yes"
    steps: int = 3

    def __post_init__(self) -> None:
        check_integer(self.name, "rank", self.rank, 1, 1 << 12)
        for setting in ("factors", "rest"):
            part = as_compressor(getattr(self, setting), f"{self.name}: {setting}")
            object.__setattr__(self, setting, part)
        if any(inner.corrects or inner.recalls for inner in all_inside(self.factors)):
            raise SpecError(
                f"power_sgd: factors={self.factors} would carry over what belongs to other "
                "factors; write error_feedback(power_sgd(4)), around the whole"
            )
        check_choice(self.name, "warm_start", self.warm_start, ("yes", "no"))
        check_integer(self.name, "steps", self.steps, 1, 100)

    def inside(self) -> Sequence[Compressor]:
        """Give what sends the factors, and what sends the rest."""
        return (self.factors, self.rest)

    @property
    def unbiased(self) -> bool:
        """Never: what lies outside the subspace is left out."""
        return False

    def init_state(self, like: Mapping[str, Tensor]) -> State:
        """Start from matrices that are the same on every client."""
        matrices, rest = self._split(like)
        state: dict[str, Tensor] = {}
        if self.warm_start == "yes":
            for name in matrices:
                rng = rng_for(0, purpose=f"power_sgd/{name}")
                state[_START + name] = self._normal(rng, like[name])
        factors = self.factors.init_state(_factors_like(matrices, self.rank))
        state |= {_FACTORS + name: x for name, x in factors.items()}
        return state | {_REST + name: x for name, x in self.rest.init_state(rest).items()}

    def after_absence(self, state: State, rounds: int) -> State:
        """Let the states inside age by themselves."""
        aged = dict(state)
        for prefix, part in ((_FACTORS, self.factors), (_REST, self.rest)):
            own = part.after_absence(under(state, prefix), rounds)
            aged |= {prefix + name: x for name, x in own.items()}
        return aged

    def encode_sections(
        self,
        update: Mapping[str, Tensor],
        state: State,
        rng: np.random.Generator,
        want_decoded: bool,
    ) -> Encoded:
        """Send the factors of every matrix, then what multiplies them, then the rest."""
        matrices, rest = self._split(update)
        starts: dict[str, Tensor] = {}
        factors: dict[str, Tensor] = {}
        working: dict[str, tuple[Tensor, int]] = {}
        for name, x in matrices.items():
            if not bool(torch.isfinite(x).all()):
                raise NotFiniteError(
                    f"array {name!r}: holds NaN or infinity, which power_sgd cannot code; leave "
                    "this client out, or lower its learning rate"
                )
            near_one, half = _without_even_exponent(x.to(_working_dtype(x.dtype)))
            start = self._start(state, name, x, rng).to(near_one)
            p, q = _subspace(near_one, start, self.steps)
            working[name], starts[_START + name] = (near_one, half), q
            factors[name] = torch.cat([p, q]) * 2.0**half
        sent = self.factors.encode_sections(factors, under(state, _FACTORS), rng, True)
        others = self.rest.encode_sections(rest, under(state, _REST), rng, want_decoded)
        if sent.decoded is None:
            raise TypeError(f"{self.factors.name}: gave no decoded update when asked for it")
        gains = {
            name: _gains(near_one, sent.decoded[name] / 2.0**half)
            for name, (near_one, half) in working.items()
        }
        sections = [
            *sent.sections,
            *(Section("scale", encode_plain(Scale(gain))) for gain in gains.values()),
            *others.sections,
        ]
        new_state = starts if self.warm_start == "yes" else {}
        for prefix, part in ((_FACTORS, sent), (_REST, others)):
            new_state |= {prefix + name: x for name, x in part.state.items()}
        if others.decoded is None:
            return Encoded(sections, new_state, None)
        decoded = dict(others.decoded)
        for name, gain in gains.items():
            decoded[name] = _low_rank(sent.decoded[name], gain, update[name]).dense()
        return Encoded(sections, new_state, {name: decoded[name] for name in update})

    def read_sections(
        self, reader: SectionReader, like: Mapping[str, Tensor]
    ) -> Mapping[str, Part]:
        """Read the factors of every matrix, then what multiplies them, then the rest."""
        matrices, rest = self._split(like)
        factors = self.factors.read_sections(reader, _factors_like(matrices, self.rank))
        products: dict[str, Part] = {}
        for name, x in matrices.items():
            form = ScaleForm(self.rank, _working_dtype(x.dtype))
            gains = decode_plain(reader.take("scale"), form)
            if not isinstance(gains, Scale):
                raise PayloadError(f"expected scales, got a stream of {gains.kind}")
            products[name] = _low_rank(factors[name].dense(), gains.values.to(x.device), like[name])
        parts = {**products, **self.rest.read_sections(reader, rest)}
        return {name: parts[name] for name in like}

    def __str__(self) -> str:
        return call_text(self)

    def __repr__(self) -> str:
        return str(self)

    def _split(self, arrays: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Give the arrays to factor, as matrices, and the others."""
        matrices: dict[str, Tensor] = {}
        rest: dict[str, Tensor] = {}
        for name, x in arrays.items():
            rows = x.shape[0] if x.ndim else 1
            if x.is_floating_point() and self.rank * (rows + x.numel() // max(rows, 1)) < x.numel():
                matrices[name] = x.reshape(rows, -1)
            else:
                rest[name] = x
        return matrices, rest

    def _start(self, state: State, name: str, x: Tensor, rng: np.random.Generator) -> Tensor:
        if self.warm_start == "no":
            return self._normal(rng, x)
        start = state.get(_START + name)
        shape = (x.shape[1], self.rank)
        if start is None or start.shape != shape:
            found = "none" if start is None else f"one of shape {tuple(start.shape)}"
            raise LayoutError(
                f"power_sgd: array {name!r} needs a start of shape {shape}, the state holds "
                f"{found}; make the state with init() on the same arrays"
            )
        return start

    def _normal(self, rng: np.random.Generator, x: Tensor) -> Tensor:
        size = x.numel() // len(x), self.rank
        return torch.from_numpy(rng.standard_normal(size)).to(x.device, _working_dtype(x.dtype))


@dataclass(frozen=True, eq=False)
class _LowRank(Part):
    """A matrix as its two factors."""

    p: Tensor
    q: Tensor
    like: Layout

    def dense(self) -> Tensor:
        p, q = self.p, self.q
        if self._is_large:
            p, q = p.double(), q.double()
        limit = torch.finfo(self.like.dtype).max
        product = p @ q.T
        if self._is_large:
            product.clamp_(-limit, limit)
        return narrow(product, self.like.dtype).reshape(self.like.shape)

    def add_to(self, total: Tensor, weight: float) -> None:
        if self._is_large or total.dtype != self.p.dtype or self.like.dtype != self.p.dtype:
            total.add_(self.dense(), alpha=weight)
        else:
            total.view(len(self.p), len(self.q)).addmm_(self.p, self.q.T, alpha=weight)

    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.p).all()) and bool(torch.isfinite(self.q).all())

    @cached_property
    def _is_large(self) -> bool:
        """Whether a sum of products might overflow."""
        limit = torch.finfo(self.p.dtype).max / 4
        bound = float(self.p.abs().max()) * float(self.q.abs().max()) * self.p.shape[1]
        return not bound < limit


def _low_rank(factors: Tensor, gains: Tensor, like: Tensor) -> _LowRank:
    p, q = factors[: like.shape[0]], factors[like.shape[0] :]
    return _LowRank(p * gains, q, Layout.of(like))


def _factors_like(matrices: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    return {
        name: x.new_empty((sum(x.shape), rank), dtype=_working_dtype(x.dtype))
        for name, x in matrices.items()
    }


def _subspace(x: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Give the factors of X: left and right singular vectors, both times the singular values.

    An error of one size in either then does the same harm in every column.
    """
    p = _orthogonal(x @ start)
    for _ in range(steps - 1):
        p = _orthogonal(x @ (x.T @ p))
    right, values, turn = torch.linalg.svd(x.T @ p, full_matrices=False)
    return p @ turn.T * values, right * values


def _orthogonal(columns: Tensor) -> Tensor:
    q: Tensor = torch.linalg.qr(columns).Q
    return q


def _gains(x: Tensor, factors: Tensor) -> Tensor:
    """Give what to multiply each pair of decoded columns by to come nearest to X."""
    p, q = factors[: len(x)].double(), factors[len(x) :].double()
    p_norms, q_norms = p.norm(dim=0), q.norm(dim=0)
    norms = p_norms * q_norms
    # Columns of zeros have no direction, and may have any length.
    p, q = p / p_norms.clamp(min=1e-300), q / q_norms.clamp(min=1e-300)
    along = ((x @ q.to(x.dtype)) * p).sum(0)
    products = (p.T @ p) * (q.T @ q)
    products += 1e-9 * torch.eye(len(products), dtype=products.dtype, device=x.device)
    gains = torch.linalg.solve(products, along) / norms
    return torch.where(norms > 0, gains, 0.0).to(x.dtype)


def _without_even_exponent(x: Tensor) -> tuple[Tensor, int]:
    """Take a power of four out of ``x`` where it is far from 1; give half its exponent."""
    near_one, exponent = without_exponent(x)
    return (near_one * 2.0 if exponent % 2 else near_one), exponent // 2


def _working_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
