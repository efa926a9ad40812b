"""Names of stages, coders and compressors: the built-in ones and third parties'.

A package adds its own by an entry point in the group ``fedcompress.stages``,
``fedcompress.coders`` or ``fedcompress.compressors`` whose name is the name in spec strings.
"""

import logging
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TypeVar

from fedcompress.coder import Coder
from fedcompress.compressor import Compressor
from fedcompress.errors import SpecError
from fedcompress.stage import Stage

logger = logging.getLogger(__name__)

_STAGES = {
    "bernoulli_mask": "fedcompress.stages.bernoulli_mask:BernoulliMask",
    "cast": "fedcompress.stages.cast:Cast",
    "codebook": "fedcompress.stages.codebook:Codebook",
    "dither": "fedcompress.stages.dither:Dither",
    "eden": "fedcompress.stages.eden:Eden",
    "global_top_k": "fedcompress.stages.global_top_k:GlobalTopK",
    "n_of_m": "fedcompress.stages.n_of_m:NOfM",
    "nf4": "fedcompress.stages.nf4:Nf4",
    "product_quantize": "fedcompress.stages.product_quantize:ProductQuantize",
    "qsgd": "fedcompress.stages.qsgd:Qsgd",
    "quantize": "fedcompress.stages.quantize:Quantize",
    "random_k": "fedcompress.stages.random_k:RandomK",
    "rdo": "fedcompress.stages.rdo:Rdo",
    "sign": "fedcompress.stages.sign:Sign",
    "ternary": "fedcompress.stages.ternary:Ternary",
    "threshold": "fedcompress.stages.threshold:Threshold",
    "top_k": "fedcompress.stages.top_k:TopK",
    "top_rows": "fedcompress.stages.top_rows:TopRows",
}
_CODERS = {
    "entropy": "fedcompress.coders.entropy:Entropy",
    "lossless": "fedcompress.coders.lossless:Lossless",
    "pack": "fedcompress.coders.pack:Pack",
    "raw": "fedcompress.coders.raw:Raw",
}
_COMPRESSORS = {
    "budget": "fedcompress.budget:Budget",
    "count_sketch": "fedcompress.count_sketch:CountSketch",
    "delta": "fedcompress.delta:Delta",
    "dgc": "fedcompress.dgc:DGC",
    "ef21": "fedcompress.ef21:EF21",
    "error_feedback": "fedcompress.feedback:ErrorFeedback",
    "momentum": "fedcompress.momentum:Momentum",
    "power_sgd": "fedcompress.power_sgd:PowerSGD",
    "route": "fedcompress.route:Route",
}

_Kind = TypeVar("_Kind")


@cache
def stages() -> MappingProxyType[str, type[Stage]]:
    """Map the name of every installed stage to its class."""
    return _load("fedcompress.stages", _STAGES, Stage)  # type: ignore[type-abstract]


@cache
def coders() -> MappingProxyType[str, type[Coder]]:
    """Map the name of every installed coder to its class."""
    return _load("fedcompress.coders", _CODERS, Coder)  # type: ignore[type-abstract]


@cache
def compressors() -> MappingProxyType[str, type[Compressor]]:
    """Map the name of every installed compressor that wraps others to its class."""
    return _load("fedcompress.compressors", _COMPRESSORS, Compressor)  # type: ignore[type-abstract]


def _load(
    group: str, built_in: dict[str, str], kind: type[_Kind]
) -> MappingProxyType[str, type[_Kind]]:
    found: dict[str, type[_Kind]] = {}
    for name, path in built_in.items():
        module, _, attribute = path.partition(":")
        found[name] = getattr(import_module(module), attribute)
    for point in entry_points(group=group):
        if point.name in found:
            raise SpecError(
                f"{group}: {point.value} wants the name {point.name!r}, which is taken; "
                "rename the entry point"
            )
        try:
            loaded = point.load()
        except Exception as error:  # noqa: BLE001  a stranger's module may fail in any way; the others still work
            logger.warning(
                "%s: %s (%s) cannot be loaded and is left out: %s",
                group,
                point.name,
                point.value,
                error,
            )
            continue
        if not (isinstance(loaded, type) and issubclass(loaded, kind)):
            raise SpecError(f"{group}: {point.value} is not a subclass of {kind.__name__}")
        if getattr(loaded, "name", None) != point.name:
            raise SpecError(
                f"{group}: {point.value} calls itself {getattr(loaded, 'name', None)!r}; "
                f"set its name to {point.name!r}, as the entry point says"
            )
        found[point.name] = loaded
    return MappingProxyType(found)
