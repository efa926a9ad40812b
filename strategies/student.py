"""A smaller student for deployment, distilled from the global model or from the clients'."""

from dataclasses import dataclass

import numpy as np
import safetensors.torch
from torch import Tensor, nn

from fedcompress.distill import DistilResult, distil, predict_logits
from fedcompress.errors import ConfigError


@dataclass(frozen=True)
class StudentResult:
    """A student and what it saves.

    Attributes
    ----------
    student : nn.Module
        The trained student, on the CPU in evaluation mode.
    teacher_parameters, student_parameters : int
        Trainable and frozen parameters, shared ones counted once.
    teacher_bytes, student_bytes : int
        Size as safetensors files, buffers included.
    agreement : float
        Share of held-out proxy rows on which student and teacher name the same class.
    distillation : DistilResult
        Steps, divergence before and after, and whether it stopped early.
    """

    student: nn.Module
    teacher_parameters: int
    student_parameters: int
    teacher_bytes: int
    student_bytes: int
    agreement: float
    distillation: DistilResult


def distil_student(
    teacher: nn.Module,
    student: nn.Module,
    proxy: Tensor,
    *,
    rng: np.random.Generator,
    temperature: float = 2.0,
    steps: int = 1000,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    patience: int = 200,
    holdout_fraction: float = 0.1,
    hard_label_weight: float = 0.0,
    teacher_logits: Tensor | None = None,
    device: str = "cpu",
) -> StudentResult:
    """Train a smaller model to follow the global model, or an ensemble, on unlabelled data.

    Knowledge distillation without labels (Hinton et al., 2015). Unlike in a round, the student
    learns its own normalisation statistics.

    Parameters
    ----------
    teacher : nn.Module
        The global model; left as it was, on the CPU.
    student : nn.Module
        Any architecture with the same inputs and classes and fewer parameters; changed in place.
    proxy : Tensor
        Unlabelled inputs, shape ``(rows, ...)``, as both models take them.
    rng : numpy.random.Generator
        Draws the held-out rows and mini-batches.
    temperature, steps, batch_size, learning_rate, patience, holdout_fraction, device
        As for `fedcompress.distill.distil`.
    hard_label_weight : float
        As for `fedcompress.distill.distil`; the label is the class that the teacher names.
    teacher_logits : Tensor, optional
        What an ensemble says of the proxy data, shape ``(rows, ..., classes)``: followed in
        place of the global model, which the student is then only compared with.

    Returns
    -------
    StudentResult

    Raises
    ------
    ConfigError
        If the student is not smaller, or a setting or the proxy data cannot work.
    LayoutError
        If teacher and student have different classes.
    """
    teacher_parameters, student_parameters = count_parameters(teacher), count_parameters(student)
    if student_parameters >= teacher_parameters:
        raise ConfigError(
            f"student: it has {student_parameters} parameters, the teacher {teacher_parameters}; "
            "choose a smaller student"
        )
    if len(proxy) < 2:
        raise ConfigError(
            f"proxy data: distillation needs at least 2 rows, got {len(proxy)}; "
            "give more unlabelled inputs"
        )
    said = predict_logits(teacher, proxy, device=device)
    teacher.to("cpu")
    distillation = distil(
        student,
        proxy,
        said if teacher_logits is None else teacher_logits,
        rng=rng,
        temperature=temperature,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        patience=patience,
        holdout_fraction=holdout_fraction,
        learn_statistics=True,
        hard_label_weight=hard_label_weight,
        device=device,
    )
    student.eval()
    return StudentResult(
        student=student,
        teacher_parameters=teacher_parameters,
        student_parameters=student_parameters,
        teacher_bytes=file_bytes(teacher),
        student_bytes=file_bytes(student),
        agreement=distillation.agreement,
        distillation=distillation,
    )


def count_parameters(model: nn.Module) -> int:
    """Count a model's parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def file_bytes(model: nn.Module) -> int:
    """Measure a model's size as a safetensors file, by writing one to memory."""
    # Clones, because safetensors refuses arrays that share memory or are not contiguous.
    arrays = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in model.state_dict().items()
    }
    return len(safetensors.torch.save(arrays))
