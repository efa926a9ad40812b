"""Knowledge distillation: ask an ensemble of teachers, and train a student to follow it.

Pure functions on models and tensors; nothing here knows of Flower. Logits have shape
``(rows, ..., classes)``, the classes last.
"""

from fedcompress.distill.augment import Augmentation, augmented
from fedcompress.distill.combine import (
    Combine,
    Ensemble,
    RowWeighting,
    aligned_logits,
    average_logits,
)
from fedcompress.distill.follow import DistilResult, distil
from fedcompress.distill.logits import kl_divergence, predict_logits
from fedcompress.distill.settings import check_choice, check_settings
from fedcompress.distill.synthetic import generated_inputs, matched_inputs, noise_inputs

__all__ = [
    "Augmentation",
    "Combine",
    "DistilResult",
    "Ensemble",
    "RowWeighting",
    "aligned_logits",
    "augmented",
    "average_logits",
    "check_choice",
    "check_settings",
    "distil",
    "generated_inputs",
    "kl_divergence",
    "matched_inputs",
    "noise_inputs",
    "predict_logits",
]
