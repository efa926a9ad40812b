"""Published methods as ready-made names for study files."""

# Importing a file registers its methods; the order here is the order in which they are listed.
from strategies.methods import (  # isort: skip
    server_rules,
    quantization,
    sparsification,
    signs,
    distillation,
    predictions,
    pruning,
    widths,
)
from strategies.methods.method import Method
from strategies.methods.registry import method, methods, parameters, published
from strategies.methods.servers import SERVERS, build_server, check_server, is_of_federation

__all__ = [
    "SERVERS",
    "Method",
    "build_server",
    "check_server",
    "distillation",
    "is_of_federation",
    "method",
    "methods",
    "parameters",
    "predictions",
    "pruning",
    "published",
    "quantization",
    "server_rules",
    "signs",
    "sparsification",
    "widths",
]
