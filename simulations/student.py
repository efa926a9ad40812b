"""A student for deployment, distilled when a cell's training is over."""

from typing import Any

import safetensors.numpy
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fedcompress import ConfigError, rng_for
from fedcompress.flower_adapter import strategies_inside
from simulations.cell import Cell
from simulations.materials import Materials
from simulations.models import model_arrays
from simulations.proxy import proxy_source
from simulations.training import evaluate
from strategies import Distilled, distil_student


def train_student(
    cell: Cell, materials: Materials, teacher: nn.Module, strategy: Strategy
) -> tuple[dict[str, Any], bytes]:
    """Distil the global model, or what the last round's clients said, into the cell's student.

    Parameters
    ----------
    cell : Cell
        The `student` of its strategy says what to build and how to train it.
    materials : Materials
        Proxy data to distil on, and test data to measure by.
    teacher : nn.Module
        The global model.
    strategy : Strategy
        The cell's; where the clients are to teach, it remembers what they said.

    Returns
    -------
    dict
        What ``result.json`` says of the student.
    bytes
        The student as a safetensors file.

    Raises
    ------
    ConfigError
        If the cell has no student, or one that is not smaller than the global model, or if the
        clients are to teach and none did.
    """
    settings = cell.strategy.student
    if settings is None:
        raise ConfigError(f"student: strategy {cell.label!r} has none; give it a table `student`")
    student = materials.new_model(settings, cell.seed)
    rng = rng_for(cell.seed, round=cell.rounds, client="server", purpose="synthetic")
    distilled = distil_student(
        teacher,
        student,
        proxy_source(cell, materials).inputs(teacher, rng),
        rng=rng_for(cell.seed, round=cell.rounds, client="server", purpose="student"),
        temperature=settings.temperature,
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        patience=settings.patience,
        holdout_fraction=settings.holdout_fraction,
        teacher_logits=_said(strategy) if settings.teacher == "ensemble" else None,
        device=cell.device,
    )
    data = materials.data
    tested = evaluate(student, data.test_x, data.test_y, data, device=cell.device)
    facts = {
        "model": settings.name,
        "hidden": list(settings.hidden),
        "width": settings.width,
        "teacher": settings.teacher,
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


def _said(strategy: Strategy) -> Tensor:
    for inner in strategies_inside(strategy):
        if isinstance(inner, Distilled) and inner.last_ensemble is not None:
            return inner.last_ensemble
    raise ConfigError(
        "student.teacher: no client's model has taught in any round, so there is no ensemble to "
        'follow; set teacher = "global"'
    )
