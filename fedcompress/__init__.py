"""Compression of federated model updates: stages, coders, and both ends of the protocol."""

from fedcompress.chain import Chain, chain
from fedcompress.client import compress, compression_mod
from fedcompress.coder import Coder
from fedcompress.coders.entropy import Entropy as entropy  # noqa: N813  the spec's own names
from fedcompress.coders.lossless import Lossless as lossless  # noqa: N813
from fedcompress.coders.pack import Pack as pack  # noqa: N813
from fedcompress.coders.raw import Raw as raw  # noqa: N813
from fedcompress.compressor import Compressor
from fedcompress.errors import (
    ConfigError,
    FedcompressError,
    LayoutError,
    NotFiniteError,
    PayloadError,
    SpecError,
)
from fedcompress.feedback import ErrorFeedback as error_feedback  # noqa: N813
from fedcompress.randomness import rng_for
from fedcompress.route import Route as route  # noqa: N813
from fedcompress.server import Compressed
from fedcompress.spec import parse
from fedcompress.stage import Stage
from fedcompress.stages.cast import Cast as cast  # noqa: N813
from fedcompress.stages.quantize import Quantize as quantize  # noqa: N813
from fedcompress.stages.random_k import RandomK as random_k  # noqa: N813
from fedcompress.stages.sign import Sign as sign  # noqa: N813
from fedcompress.stages.ternary import Ternary as ternary  # noqa: N813
from fedcompress.stages.threshold import Threshold as threshold  # noqa: N813
from fedcompress.stages.top_k import TopK as top_k  # noqa: N813

__version__ = "0.1.0"

__all__ = [
    "Chain",
    "Coder",
    "Compressed",
    "Compressor",
    "ConfigError",
    "FedcompressError",
    "LayoutError",
    "NotFiniteError",
    "PayloadError",
    "SpecError",
    "Stage",
    "cast",
    "chain",
    "compress",
    "compression_mod",
    "entropy",
    "error_feedback",
    "lossless",
    "pack",
    "parse",
    "quantize",
    "random_k",
    "raw",
    "rng_for",
    "route",
    "sign",
    "ternary",
    "threshold",
    "top_k",
]
