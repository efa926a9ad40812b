"""What a published method is: a server rule, compressors for both directions, distillation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Option = int | float | str | bool | None


@dataclass(frozen=True)
class Recipe:
    """The parts of a method, as its builder gives them.

    Attributes
    ----------
    server : str
        Name of the server rule, as in `strategies.methods.servers.SERVERS`.
    server_options : mapping of str to number or str
        Settings of the server rule that the method fixes.
    uplink : str or None
        Compressor spec of what clients send; None leaves their arrays dense, as Flower sends them.
    downlink : str or None
        Compressor spec of what the server sends; None sends the dense model.
    distill : bool
        Whether the clients' models are distilled into the global model.
    exchange : str
        What server and clients exchange, such as ``"model"`` or ``"logits"``.
    options : mapping of str to number or str
        Further settings of a strategy that the method fixes, by their dotted keys, such as
        ``{"logits.redraw": True}``.
    """

    server: str = "fedavg"
    server_options: Mapping[str, int | float | str] = field(default_factory=dict)
    uplink: str | None = None
    downlink: str | None = None
    distill: bool = False
    exchange: str = "model"
    options: Mapping[str, bool | int | float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A published method under a name that study files use.

    Attributes
    ----------
    name : str
        Its name, in snake_case.
    source : str
        Authors, title, year.
    summary : str
        One line.
    server, server_options, uplink, downlink, distill, exchange, options
        As in `Recipe`.
    """

    name: str
    source: str
    summary: str
    server: str
    server_options: Mapping[str, int | float | str]
    uplink: str | None
    downlink: str | None
    distill: bool
    exchange: str = "model"
    options: Mapping[str, bool | int | float | str] = field(default_factory=dict)


Builder = Callable[..., Recipe]


@dataclass(frozen=True)
class Entry:
    """A registered method: how it is called, where it comes from, and what builds it."""

    name: str
    source: str
    summary: str
    build: Builder
