"""The proxy data that a cell names, as distillation takes them."""

from fedcompress import rng_for
from fedcompress.distill import augmented
from simulations.cell import Cell
from simulations.materials import Materials
from strategies.proxy import (
    GeneratedProxy,
    GivenProxy,
    NoiseProxy,
    ProxySource,
    StatisticsProxy,
)


def proxy_source(cell: Cell, materials: Materials) -> ProxySource:
    """Give the source of a cell's proxy data.

    Raises
    ------
    ConfigError
        If the rows that it names are not there, of another shape, or cannot be augmented.
    """
    data, rows = materials.data, cell.proxy.samples
    kind, shape = cell.proxy.source, materials.data.sample_shape
    if kind == "noise":
        is_text = data.task == "characters"
        return NoiseProxy(rows, shape, vocabulary=data.num_classes if is_text else None)
    if kind == "statistics":
        return StatisticsProxy(rows, shape)
    if kind == "generator":
        return GeneratedProxy(rows, shape, data.num_classes)
    rng = rng_for(cell.seed, client="server", purpose="augment")
    return GivenProxy(augmented(materials.proxy_inputs(), cell.proxy.augment, rng), kind)
