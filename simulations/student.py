"""A student for deployment, distilled from a cell's global model when training is over."""

from typing import Any

import safetensors.numpy
from torch import nn

from fedcompress import ConfigError, rng_for
from simulations.cell import Cell
from simulations.materials import Materials
from simulations.models import model_arrays
from simulations.training import evaluate
from strategies import distil_student


def train_student(
    cell: Cell, materials: Materials, teacher: nn.Module
) -> tuple[dict[str, Any], bytes]:
    """Distil the global model into the cell's student.

    Parameters
    ----------
    cell : Cell
        The `student` of its strategy says what to build and how to train it.
    materials : Materials
        Proxy data to distil on, and test data to measure by.
    teacher : nn.Module
        The global model.

    Returns
    -------
    dict
        What ``result.json`` says of the student.
    bytes
        The student as a safetensors file.

    Raises
    ------
    ConfigError
        If the cell has no student, or one that is not smaller than the global model.
    """
    settings = cell.strategy.student
    if settings is None:
        raise ConfigError(f"student: strategy {cell.label!r} has none; give it a table `student`")
    student = materials.new_model(settings, cell.seed)
    distilled = distil_student(
        teacher,
        student,
        materials.proxy_inputs(),
        rng=rng_for(cell.seed, round=cell.rounds, client="server", purpose="student"),
        temperature=settings.temperature,
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        patience=settings.patience,
        holdout_fraction=settings.holdout_fraction,
        device=cell.device,
    )
    data = materials.data
    tested = evaluate(student, data.test_x, data.test_y, data, device=cell.device)
    facts = {
        "model": settings.name,
        "hidden": list(settings.hidden),
        "accuracy": tested.accuracy,
        "agreement": distilled.agreement,
        "parameters": distilled.student_parameters,
        "file_bytes": distilled.student_bytes,
        "teacher_parameters": distilled.teacher_parameters,
        "teacher_file_bytes": distilled.teacher_bytes,
        "steps": distilled.distillation.steps,
    }
    student.to("cpu")
    return facts, safetensors.numpy.save(dict(model_arrays(student)))
