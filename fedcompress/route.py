"""Routing: different compressors for different arrays, by name, size, dimensions or dtype."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from fedcompress.array_rules import canonical, matches
from fedcompress.chain import as_compressor
from fedcompress.compressor import Compressor, Encoded, Part, State, under
from fedcompress.errors import SpecError
from fedcompress.spec_text import literal_text
from fedcompress.wire import Framed, Section, SectionReader


@dataclass(frozen=True, init=False, repr=False)
class Route(Compressor):
    """Send each array by the compressor of the first rule that it meets.

    Parameters
    ----------
    patterns : Mapping[str, Compressor]
        Rules, tried in order: shell patterns of array names (``*``, ``?``, ``[…]``), comparisons
        of ``size`` (number of entries), ``ndim`` or ``dtype``, or several of them joined by
        ``&``; as in ``route({"*.bias": raw(), "size<256": raw(), "ndim=2 & size>=10000":
        quantize(4)}, default=quantize(8))``.
    default : Compressor
        For arrays that meet no rule.
    """

    name: ClassVar[str] = "route"

    patterns: tuple[tuple[str, Compressor], ...]
    default: Compressor

    def __init__(self, patterns: object, default: object) -> None:
        if not isinstance(patterns, Mapping) or not patterns:
            raise SpecError(
                "route: needs at least one pattern; write "
                'route({"*.bias": raw()}, default=quantize(4) | entropy())'
            )
        if any(not isinstance(pattern, str) for pattern in patterns):
            raise SpecError(f"route: patterns are strings, got {list(patterns)!r}")
        pairs = tuple(
            (canonical(self.name, pattern), as_compressor(part, f"route: {pattern!r}"))
            for pattern, part in patterns.items()
        )
        twice = [rule for rule, count in Counter(rule for rule, _ in pairs).items() if count > 1]
        if twice:
            raise SpecError(f"route: {twice[0]!r} is written twice; the first would always win")
        object.__setattr__(self, "patterns", pairs)
        object.__setattr__(self, "default", as_compressor(default, "route: default"))

    @property
    def unbiased(self) -> bool:
        """Whether every compressor in it is."""
        return all(part.unbiased for part in self._parts())

    def inside(self) -> Sequence[Compressor]:
        """Give the compressors of all patterns, and the default."""
        return self._parts()

    def init_state(self, like: Mapping[str, Tensor]) -> State:
        """Make the state of every part."""
        return {
            f"{i}/{name}": x
            for i, (part, arrays) in enumerate(self._groups(like))
            for name, x in part.init_state(arrays).items()
        }

    def after_absence(self, state: State, rounds: int) -> State:
        """Let each part's state age by itself."""
        aged = dict(state)
        for i, part in enumerate(self._parts()):
            prefix = f"{i}/"
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
        """Encode part by part, in the order of the patterns."""
        sections: list[Section | Framed] = []
        new_state: dict[str, Tensor] = {}
        decoded: dict[str, Tensor] = {}
        for i, (part, arrays) in enumerate(self._groups(update)):
            prefix = f"{i}/"
            encoded = part.encode_sections(arrays, under(state, prefix), rng, want_decoded)
            sections += encoded.sections
            new_state |= {prefix + name: x for name, x in encoded.state.items()}
            decoded |= encoded.decoded or {}
        if not want_decoded:
            return Encoded(sections, new_state, None)
        return Encoded(sections, new_state, {name: decoded[name] for name in update})

    def read_sections(
        self, reader: SectionReader, like: Mapping[str, Tensor]
    ) -> Mapping[str, Part]:
        """Read part by part."""
        parts: dict[str, Part] = {}
        for compressor, arrays in self._groups(like):
            parts |= compressor.read_sections(reader, arrays)
        return {name: parts[name] for name in like}

    def __str__(self) -> str:
        pairs = ", ".join(f"{literal_text(p)}: {part}" for p, part in self.patterns)
        return f"route({{{pairs}}}, default={self.default})"

    def __repr__(self) -> str:
        return str(self)

    def _parts(self) -> tuple[Compressor, ...]:
        return (*(part for _, part in self.patterns), self.default)

    def _groups(self, arrays: Mapping[str, Tensor]) -> list[tuple[Compressor, dict[str, Tensor]]]:
        groups: list[tuple[Compressor, dict[str, Tensor]]] = [(p, {}) for p in self._parts()]
        for name, x in arrays.items():
            met = (i for i, (rule, _) in enumerate(self.patterns) if matches(rule, name, x))
            groups[next(met, len(self.patterns))][1][name] = x
        return groups
