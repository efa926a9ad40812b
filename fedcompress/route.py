"""Routing: different compressors for different arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import numpy as np
from torch import Tensor

from fedcompress.chain import as_compressor
from fedcompress.compressor import Compressor, Encoded, Part, State
from fedcompress.errors import SpecError
from fedcompress.spec_text import literal_text
from fedcompress.wire import Section, SectionReader


@dataclass(frozen=True, init=False, repr=False)
class Route(Compressor):
    """Send each array by the compressor of the first pattern that its name matches.

    Parameters
    ----------
    patterns : Mapping[str, Compressor]
        Shell patterns of array names (``*``, ``?``, ``[…]``), tried in order; as in
        ``route({"*.bias": raw(), "*running_*": lossless()}, default=quantize(4))``.
    default : Compressor
        For arrays that match no pattern.
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
            (pattern, as_compressor(part, f"route: {pattern!r}"))
            for pattern, part in patterns.items()
        )
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

    def encode_sections(
        self,
        update: Mapping[str, Tensor],
        state: State,
        rng: np.random.Generator,
        want_decoded: bool,
    ) -> Encoded:
        """Encode part by part, in the order of the patterns."""
        sections: list[Section] = []
        new_state: dict[str, Tensor] = {}
        decoded: dict[str, Tensor] = {}
        for i, (part, arrays) in enumerate(self._groups(update)):
            prefix = f"{i}/"
            own = {k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)}
            encoded = part.encode_sections(arrays, own, rng, want_decoded)
            sections += encoded.sections
            new_state |= {prefix + name: x for name, x in encoded.state.items()}
            decoded |= encoded.decoded or {}
        if not want_decoded:
            return Encoded(sections, new_state, None)
        return Encoded(sections, new_state, {name: decoded[name] for name in update})

    def read_sections(self, reader: SectionReader, like: Mapping[str, Tensor]) -> dict[str, Part]:
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
            matches = (i for i, (p, _) in enumerate(self.patterns) if fnmatchcase(name, p))
            groups[next(matches, len(self.patterns))][1][name] = x
        return groups
