"""The two directions of a run: which compressor goes up, which comes down, and what may not."""

from collections.abc import Callable

from fedcompress.compressor import Compressor
from fedcompress.errors import ConfigError
from fedcompress.spec import parse

Uplink = str | Compressor | Callable[[int, int], "str | Compressor"]


def read_links(
    owner: str, uplink: Uplink | None, downlink: str | Compressor | None
) -> tuple[Uplink | None, Compressor | None]:
    """Parse both directions; a compressed downlink without an uplink makes that ``raw()``.

    Raises
    ------
    ConfigError
        If a spec cannot be parsed, or the downlink needs what a client may have missed.
    """
    if uplink is None and downlink is not None:
        uplink = "raw()"  # a client that decodes the model speaks the protocol both ways
    up: Uplink | None = uplink if uplink is None or callable(uplink) else parse(uplink)
    down = None if downlink is None else parse(downlink)
    if down is not None and down.recalls:
        raise ConfigError(
            f"{owner}: downlink {down} needs a memory of what was sent, which a "
            "client that missed rounds lacks; write error_feedback(…) in its place"
        )
    return up, down
