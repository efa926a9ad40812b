"""Messages that hold other arrays for each group of clients."""

from collections.abc import Callable
from typing import final

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedcompress import protocol


@final
class Addressed:
    """Puts a group's arrays into the messages of its clients, and says which group that is.

    Messages of a round mostly share one content; those of one group share one afterwards.
    """

    def __init__(self) -> None:
        self._records: dict[str, ArrayRecord] = {}
        # By the given content's id; it is kept so that no other gets that id.
        self._contents: dict[tuple[int, str], tuple[RecordDict, RecordDict]] = {}

    def send(self, message: Message, group: str, make: Callable[[], ArrayRecord]) -> None:
        """Give a message the arrays of its group; ``make`` is called once for each group."""
        known = self._contents.get((id(message.content), group))
        if known is None:
            if group not in self._records:
                self._records[group] = make()
            known = message.content, _with(message.content, group, self._records[group])
            self._contents[id(message.content), group] = known
        message.content = known[1]


def metric_of(reply: Message, key: str) -> float | None:
    """Read one number of a reply's metrics; None where it says nothing."""
    for record in reply.content.values():
        value = record.get(key) if isinstance(record, MetricRecord) else None
        if isinstance(value, int | float):
            return float(value)
    return None


def _with(content: RecordDict, group: str, arrays: ArrayRecord) -> RecordDict:
    configs = {name: one for name, one in content.items() if isinstance(one, ConfigRecord)}
    place = next(iter(configs), protocol.RECORD)
    told = ConfigRecord({**configs.get(place, {}), protocol.GROUP_KEY: group})
    key, _ = protocol.single_array_record(content, "message")
    return RecordDict({**content, place: told, key: arrays})
