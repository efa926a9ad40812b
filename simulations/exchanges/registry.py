"""The exchanges that there are, by the name that study files use.

An exchange is imported when it is used: settings are checked against this table alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Entry:
    """Where an exchange stands, and which keys of a strategy it reads.

    Attributes
    ----------
    module, kind : str
        The module, and the `Exchange` in it.
    reads : frozenset of str
        Keys of a strategy's table that mean something to this exchange only.
    """

    module: str
    kind: str
    reads: frozenset[str] = frozenset()


EXCHANGES: Mapping[str, Entry] = {
    "model": Entry("simulations.exchanges.whole", "WholeModel"),
    "packed": Entry("simulations.exchanges.packed", "Packed", frozenset({"prune"})),
    "masks": Entry("simulations.exchanges.masks", "Masks", frozenset({"masks"})),
    "slices": Entry("simulations.exchanges.slices", "SlicedModel", frozenset({"widths"})),
    "groups": Entry(
        "simulations.exchanges.groups", "ModelGroups", frozenset({"groups", "group_shares"})
    ),
    "logits": Entry("simulations.exchanges.logits", "Logits", frozenset({"logits"})),
}
