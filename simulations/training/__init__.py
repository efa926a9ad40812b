"""Local training of clients, one by one or many in one program, and evaluation."""

from simulations.training.calibrate import faster_path, has_no_rule
from simulations.training.choose import TrainingPath, choose_path
from simulations.training.cohort import CohortMember, TrainedCohort, train_cohort
from simulations.training.evaluation import Evaluation, evaluate
from simulations.training.local import train_locally
from simulations.training.options import LocalResult, OptimizerName, TrainingOptions

__all__ = [
    "CohortMember",
    "Evaluation",
    "LocalResult",
    "OptimizerName",
    "TrainedCohort",
    "TrainingOptions",
    "TrainingPath",
    "choose_path",
    "evaluate",
    "faster_path",
    "has_no_rule",
    "train_cohort",
    "train_locally",
]
