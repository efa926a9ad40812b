"""Local training of clients, one by one or many in one program, and evaluation."""

from simulations.training.evaluation import Evaluation, evaluate
from simulations.training.local import train_locally
from simulations.training.options import LocalResult, OptimizerName, TrainingOptions

__all__ = [
    "Evaluation",
    "LocalResult",
    "OptimizerName",
    "TrainingOptions",
    "evaluate",
    "train_locally",
]
