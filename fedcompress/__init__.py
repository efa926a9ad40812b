"""Compression of federated model updates: stages, coders, and both ends of the protocol."""

from fedcompress.budget import Budget as budget  # noqa: N813  the spec's own names
from fedcompress.budget import with_importance
from fedcompress.chain import Chain, chain
from fedcompress.client import compress, compression_mod
from fedcompress.coder import Coder
from fedcompress.coders.entropy import Entropy as entropy  # noqa: N813  the spec's own names
from fedcompress.coders.lossless import Lossless as lossless  # noqa: N813
from fedcompress.coders.pack import Pack as pack  # noqa: N813
from fedcompress.coders.raw import Raw as raw  # noqa: N813
from fedcompress.compressor import Compressor
from fedcompress.count_sketch import CountSketch as count_sketch  # noqa: N813
from fedcompress.delta import Delta as delta  # noqa: N813
from fedcompress.dgc import DGC as dgc
from fedcompress.ef21 import EF21 as ef21
from fedcompress.errors import (
    BudgetError,
    ConfigError,
    FedcompressError,
    LayoutError,
    NotFiniteError,
    OutOfRangeError,
    PayloadError,
    SpecError,
    StaleMemoryError,
)
from fedcompress.feedback import ErrorFeedback as error_feedback  # noqa: N813
from fedcompress.momentum import Momentum as momentum  # noqa: N813
from fedcompress.power_sgd import PowerSGD as power_sgd  # noqa: N813
from fedcompress.randomness import rng_for
from fedcompress.route import Route as route  # noqa: N813
from fedcompress.server import Compressed
from fedcompress.spec import parse
from fedcompress.stage import Stage
from fedcompress.stages.bernoulli_mask import BernoulliMask as bernoulli_mask  # noqa: N813
from fedcompress.stages.cast import Cast as cast  # noqa: N813
from fedcompress.stages.codebook import Codebook as codebook  # noqa: N813
from fedcompress.stages.dither import Dither as dither  # noqa: N813
from fedcompress.stages.eden import Eden as eden  # noqa: N813
from fedcompress.stages.global_top_k import GlobalTopK as global_top_k  # noqa: N813
from fedcompress.stages.n_of_m import NOfM as n_of_m  # noqa: N813
from fedcompress.stages.nf4 import Nf4 as nf4  # noqa: N813
from fedcompress.stages.product_quantize import ProductQuantize as product_quantize  # noqa: N813
from fedcompress.stages.qsgd import Qsgd as qsgd  # noqa: N813
from fedcompress.stages.quantize import Quantize as quantize  # noqa: N813
from fedcompress.stages.random_k import RandomK as random_k  # noqa: N813
from fedcompress.stages.sign import Sign as sign  # noqa: N813
from fedcompress.stages.ternary import Ternary as ternary  # noqa: N813
from fedcompress.stages.threshold import Threshold as threshold  # noqa: N813
from fedcompress.stages.top_k import TopK as top_k  # noqa: N813
from fedcompress.stages.top_rows import TopRows as top_rows  # noqa: N813

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "Chain",
    "Coder",
    "Compressed",
    "Compressor",
    "ConfigError",
    "FedcompressError",
    "LayoutError",
    "NotFiniteError",
    "OutOfRangeError",
    "PayloadError",
    "SpecError",
    "Stage",
    "StaleMemoryError",
    "bernoulli_mask",
    "budget",
    "cast",
    "chain",
    "codebook",
    "compress",
    "compression_mod",
    "count_sketch",
    "delta",
    "dgc",
    "dither",
    "eden",
    "ef21",
    "entropy",
    "error_feedback",
    "global_top_k",
    "lossless",
    "momentum",
    "n_of_m",
    "nf4",
    "pack",
    "parse",
    "power_sgd",
    "product_quantize",
    "qsgd",
    "quantize",
    "random_k",
    "raw",
    "rng_for",
    "route",
    "sign",
    "ternary",
    "threshold",
    "top_k",
    "top_rows",
    "with_importance",
]
