"""Build a cell's strategy: compression around the exchange's part around a Flower server rule."""

import inspect
from typing import Any

from flwr.serverapp.strategy import Strategy

from fedcompress import Compressed
from fedcompress.errors import ConfigError
from simulations.cell import Cell
from simulations.exchanges.exchange import Exchange
from simulations.materials import Materials
from simulations.proxy import proxy_source
from simulations.strategy_settings import DistillSettings
from strategies import Distilled, build_server

_SPARE_ROUNDS = 4
"""Before the last one, in which a student's teachers are asked in case that none replies to it."""


def build_strategy(cell: Cell, materials: Materials, exchange: Exchange) -> Compressed:
    """Wrap the pieces that a cell names around each other.

    Parameters
    ----------
    cell : Cell
        What is to run.
    materials : Materials
        On which data.
    exchange : Exchange
        The server's end, which wraps the rule.

    Raises
    ------
    ConfigError
        If a rule, an option or a spec cannot work.
    """
    _check_proxy(cell)
    settings = cell.strategy
    clients = materials.partition.num_clients
    inner: Strategy = build_server(
        settings.server or settings.published_method(),
        {**_weights(exchange), **settings.server_options},
        fraction_train=cell.federation.fraction,
        fraction_evaluate=0.0,
        # Rounded here, because 100 × 0.29 truncates to 28 clients.
        min_train_nodes=max(1, round(clients * cell.federation.fraction)),
        min_available_nodes=clients,
    )
    teaches = settings.student is not None and settings.student.teacher == "ensemble"
    if teaches or (settings.distills and not exchange.distils_itself):
        if not exchange.distils:
            key = "distill" if settings.distills else "student.teacher"
            mend = "distill = false" if settings.distills else 'teacher = "global"'
            raise ConfigError(
                f"strategies.{cell.label}.{key}: the exchange {settings.exchange_name!r} sends "
                f"no models to learn from; set {mend}"
            )
        chosen = _distillation(cell)
        if not settings.distills:  # the teachers are only asked
            chosen["first"] = cell.rounds + 1
        inner = Distilled(
            inner,
            model=exchange.new_model,
            proxy=proxy_source(cell, materials),
            remember_from=_asked_from(cell) if teaches else None,
            seed=cell.seed,
            device=cell.device,
            **chosen,
        )
    outer = exchange.strategy(inner)
    return Compressed(
        outer,
        uplink=exchange.uplink(),
        downlink=settings.downlink_spec,
        seed=cell.seed,
    )


def _asked_from(cell: Cell) -> int:
    """Give the round from which teachers of a student are asked: the last may have none."""
    return 1 if cell.strategy.distill.memory else max(1, cell.rounds - _SPARE_ROUNDS)


def _weights(exchange: Exchange) -> dict[str, object]:
    """Tell a rule by which metric the exchange has replies weighed, if not by Flower's own."""
    usual = exchange.weighted_by == Exchange.weighted_by
    return {} if usual else {"weighted_by_key": exchange.weighted_by}


def _distillation(cell: Cell) -> dict[str, Any]:
    """Give the settings of `Distilled`, and refuse one that it does not have."""
    chosen = cell.strategy.distill.model_dump(exclude={"enabled"})
    known = inspect.signature(Distilled).parameters
    usual = DistillSettings().model_dump()
    for name, value in chosen.items():
        if name not in known and value != usual[name]:
            raise ConfigError(
                f"strategies.{cell.label}.distill.{name}: distillation here has no such setting, "
                f"got {value!r}; leave it out"
            )
    return {name: value for name, value in chosen.items() if name in known}


def _check_proxy(cell: Cell) -> None:
    """Refuse what is asked of proxy data that cannot be."""
    settings, source = cell.strategy, cell.proxy.source
    if cell.proxy.augment != "none" and source not in ("held_out", "data"):
        raise ConfigError(
            f"proxy.augment: only rows that are there are changed, got {cell.proxy.augment!r} with "
            f'kind = {source!r}; leave it "none"'
        )
    teacher = None if settings.student is None else settings.student.teacher
    if teacher == "ensemble" and source not in ("held_out", "data"):
        raise ConfigError(
            f"strategies.{cell.label}.student.teacher: an ensemble is asked about rows that stay, "
            f'and those of kind = {source!r} are others in each round; set teacher = "global"'
        )
