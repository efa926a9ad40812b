"""Build a cell's strategy: compression around distillation around a Flower server rule."""

from flwr.serverapp.strategy import Strategy

from fedcompress import Compressed
from simulations.cell import Cell
from simulations.materials import Materials
from strategies import Distilled, build_server


def build_strategy(cell: Cell, materials: Materials) -> Compressed:
    """Wrap the pieces that a cell names around each other.

    Raises
    ------
    ConfigError
        If a rule, an option or a spec cannot work.
    """
    settings = cell.strategy
    clients = materials.partition.num_clients
    inner: Strategy = build_server(
        settings.server or settings.published_method(),
        settings.server_options,
        fraction_train=cell.federation.fraction,
        fraction_evaluate=0.0,
        # Rounded here, because 100 × 0.29 truncates to 28 clients.
        min_train_nodes=max(1, round(clients * cell.federation.fraction)),
        min_available_nodes=clients,
    )
    if settings.distills:
        chosen = settings.distill
        inner = Distilled(
            inner,
            model=lambda: materials.new_model(cell.model, cell.seed),
            proxy=materials.proxy_inputs(),
            temperature=chosen.temperature,
            steps=chosen.steps,
            batch_size=chosen.batch_size,
            learning_rate=chosen.learning_rate,
            patience=chosen.patience,
            holdout_fraction=chosen.holdout_fraction,
            weighting=chosen.weighting,
            seed=cell.seed,
            device=cell.device,
        )
    return Compressed(
        inner, uplink=settings.uplink_spec, downlink=settings.downlink_spec, seed=cell.seed
    )
