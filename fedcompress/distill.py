"""Knowledge distillation: average teacher logits, and train a student to follow them.

Pure functions on models and tensors; nothing here knows of Flower. Logits have shape
``(rows, ..., classes)``, the classes last.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedcompress.errors import ConfigError, LayoutError, NotFiniteError


@dataclass(frozen=True)
class DistilResult:
    """What a distillation did.

    Attributes
    ----------
    steps : int
        Optimiser steps taken.
    best_step : int
        Step whose weights were kept; 0 means that the start was never bettered.
    held_out_kl_before, held_out_kl_after : float
        KL divergence (nats per row, times temperature squared) on the held-out rows, at
        the start and with the weights kept.
    agreement : float
        Share of held-out rows on which student and teachers name the same class.
    stopped_early : bool
        Whether patience ran out before the steps did.
    """

    steps: int
    best_step: int
    held_out_kl_before: float
    held_out_kl_after: float
    agreement: float
    stopped_early: bool


def predict_logits(
    model: nn.Module, inputs: Tensor, *, batch_size: int = 1024, device: str = "cpu"
) -> Tensor:
    """Compute a model's logits in evaluation mode, batch by batch.

    Parameters
    ----------
    model : nn.Module
        Maps inputs to logits; its mode is restored afterwards.
    inputs : Tensor
        Shape ``(rows, ...)``, as the model takes them.
    batch_size : int
        Rows per forward pass; bounds the memory, not the result.
    device : str
        Where to compute.

    Returns
    -------
    Tensor
        float32 on the CPU, shape ``(rows, ..., classes)``.
    """
    model.to(device)
    with _mode_restored(model), torch.no_grad():
        model.eval()
        parts = [
            model(batch.to(device)).to("cpu", torch.float32)
            for batch in torch.split(inputs, batch_size)
        ]
    return torch.cat(parts)


def average_logits(teachers: Iterable[tuple[Tensor, float]]) -> Tensor:
    """Average the logits of an ensemble of teachers (AVGLOGITS; Lin et al., 2020).

    Teachers are taken one at a time, so a generator keeps a single one in memory.

    Parameters
    ----------
    teachers : iterable of (Tensor, float)
        Logits, all of one shape ``(rows, ..., classes)``, and the teacher's weight, not
        negative. Only the ratios of the weights count.

    Returns
    -------
    Tensor
        float32, the shape of one teacher's logits.

    Raises
    ------
    LayoutError
        If a teacher's logits have another shape than the first teacher's.
    ConfigError
        If there is no teacher, or a weight is negative or not finite, or all are 0.
    """
    total: Tensor | None = None
    weight_sum = 0.0
    for number, (logits, weight) in enumerate(teachers):
        if not 0 <= weight < float("inf"):
            raise ConfigError(
                f"teacher {number}: weight must be finite and not negative, got {weight!r}"
            )
        if total is not None and logits.shape != total.shape:
            raise LayoutError(
                f"teacher {number}: logits have shape {tuple(logits.shape)}, those of teacher 0 "
                f"{tuple(total.shape)}; average only teachers with the same rows and classes"
            )
        # float64, so that the order of the teachers does not show in the float32 result
        weighted = logits.to(torch.float64) * weight
        total = weighted if total is None else total + weighted
        weight_sum += weight
    if total is None:
        raise ConfigError("teachers: there are none to average, got 0; give at least 1")
    if weight_sum == 0:
        raise ConfigError("teachers: the weights sum to 0; give one teacher a positive weight")
    return (total / weight_sum).to(torch.float32)


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Divergence of the student from the teacher at a temperature (Hinton et al., 2015).

    ``T**2 * KL(softmax(teacher / T) || softmax(student / T))``, summed over the classes and
    averaged over everything else; the factor keeps gradients comparable between temperatures.

    Parameters
    ----------
    student_logits, teacher_logits : Tensor
        Shape ``(rows, ..., classes)``, both the same.
    temperature : float
        Above 0; larger softens both distributions.

    Returns
    -------
    Tensor
        A scalar, in nats.
    """
    log_student = functional.log_softmax(student_logits / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher_logits / temperature, dim=-1)
    per_row = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    return per_row.mean() * temperature**2


def distil(
    student: nn.Module,
    inputs: Tensor,
    teacher_logits: Tensor,
    *,
    rng: np.random.Generator,
    temperature: float = 1.0,
    steps: int = 200,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    patience: int = 50,
    holdout_fraction: float = 0.1,
    check_every: int = 10,
    learn_statistics: bool = False,
    device: str = "cpu",
) -> DistilResult:
    """Train a student to give the teachers' logits on unlabelled inputs.

    Adam with a cosine schedule on the KL divergence (as Lin et al., 2020), stopped when the
    divergence on held-out rows has not fallen for `patience` steps. The weights with the
    lowest held-out divergence are kept, the start among them, so that a student is never
    left worse by this measure than it came.

    Parameters
    ----------
    student : nn.Module
        Changed in place; on return it stands on the CPU, its mode as before.
    inputs : Tensor
        Proxy data, shape ``(rows, ...)``, at least two rows.
    teacher_logits : Tensor
        Shape ``(rows, ..., classes)``.
    rng : numpy.random.Generator
        Draws the held-out rows, the mini-batches and the seed of dropout.
    temperature, learning_rate : float
        Above 0.
    steps, batch_size, patience, check_every : int
        At least 1; patience and `check_every` count steps.
    holdout_fraction : float
        Part of the rows held out, in [0, 1). With 0 the stopping looks at the training rows.
    learn_statistics : bool
        Whether normalisation layers re-estimate their running statistics and dropout is on,
        as for a student from scratch. Otherwise both stand as in evaluation.
    device : str
        Where to compute.

    Returns
    -------
    DistilResult

    Raises
    ------
    ConfigError
        If a setting is out of range or there are too few rows.
    LayoutError
        If the student's logits have another shape than the teachers'.
    NotFiniteError
        If the logits of the teachers, or of the student at the start, are not finite.
    """
    check_settings(
        "distil",
        temperature=temperature,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        patience=patience,
        holdout_fraction=holdout_fraction,
        check_every=check_every,
    )
    _check_teacher_logits(inputs, teacher_logits)
    train_rows, held_out_rows = _split_rows(len(inputs), holdout_fraction, rng)
    held_out_inputs, held_out_logits = inputs[held_out_rows], teacher_logits[held_out_rows]

    def held_out_kl() -> float:
        return float(kl_divergence(_predict(held_out_inputs), held_out_logits, temperature))

    def _predict(rows: Tensor) -> Tensor:
        return predict_logits(student, rows, batch_size=max(batch_size, 1024), device=device)

    _check_student_logits(_predict(held_out_inputs), held_out_logits)
    kl_before = best_kl = held_out_kl()
    best_step, stopped_early, step = 0, False, 0
    best_weights = _snapshot(student)
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    batches = _mini_batches(train_rows, batch_size, rng)
    with _mode_restored(student), _seeded_torch(int(rng.integers(2**63))):
        _set_training_mode(student, learn_statistics)
        for step in range(1, steps + 1):
            rows = next(batches)
            optimiser.zero_grad(set_to_none=True)
            student_logits = student(inputs[rows].to(device))
            loss = kl_divergence(student_logits, teacher_logits[rows].to(device), temperature)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            if step % check_every != 0 and step != steps:
                continue
            kl = held_out_kl()
            if kl < best_kl:
                best_kl, best_step, best_weights = kl, step, _snapshot(student)
            elif step - best_step >= patience:
                stopped_early = step < steps
                break
    student.to("cpu")
    student.load_state_dict(best_weights)
    agreement = _predict(held_out_inputs).argmax(-1) == held_out_logits.argmax(-1)
    student.to("cpu")
    return DistilResult(
        steps=step,
        best_step=best_step,
        held_out_kl_before=kl_before,
        held_out_kl_after=best_kl,
        agreement=float(agreement.to(torch.float64).mean()),
        stopped_early=stopped_early,
    )


def check_settings(where: str, **settings: object) -> None:
    """Refuse settings of `distil` that are out of range.

    Parameters
    ----------
    where : str
        Who asks; the error begins with it.
    **settings : object
        Settings of `distil` by name; those not given are not checked.

    Raises
    ------
    ConfigError
        Names the setting, its value and the range.
    """
    for name, value in settings.items():
        if name in ("steps", "batch_size", "patience", "check_every"):
            good, wanted = _is_whole(value) and value >= 1, "a whole number >= 1"
        elif name == "holdout_fraction":
            good, wanted = _is_number(value) and 0 <= value < 1, "in [0, 1)"
        else:
            good, wanted = _is_number(value) and 0 < value < float("inf"), "a finite number > 0"
        if not good:
            raise ConfigError(f"{where}: {name} must be {wanted}, got {value!r}")


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_teacher_logits(inputs: Tensor, teacher_logits: Tensor) -> None:
    if len(inputs) < 2:
        raise ConfigError(
            f"proxy data: distillation needs at least 2 rows, got {len(inputs)}; "
            "give more unlabelled inputs"
        )
    if teacher_logits.ndim < 2 or len(teacher_logits) != len(inputs):
        raise LayoutError(
            f"teachers: logits must have shape ({len(inputs)}, ..., classes) for {len(inputs)} "
            f"rows of proxy data, got {tuple(teacher_logits.shape)}"
        )
    if not bool(torch.isfinite(teacher_logits).all()):
        raise NotFiniteError("teachers: logits hold NaN or infinity; leave such teachers out")


def _check_student_logits(student_logits: Tensor, teacher_logits: Tensor) -> None:
    if student_logits.shape != teacher_logits.shape:
        raise LayoutError(
            f"student: logits have shape {tuple(student_logits.shape)}, the teachers' "
            f"{tuple(teacher_logits.shape)}; student and teachers must have the same classes"
        )
    if not bool(torch.isfinite(student_logits).all()):
        raise NotFiniteError("student: logits hold NaN or infinity at the start; mend its weights")


def _split_rows(
    count: int, holdout_fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    order = rng.permutation(count)
    if holdout_fraction == 0:
        return order, order
    held_out = min(max(round(count * holdout_fraction), 1), count - 1)
    return order[held_out:], order[:held_out]


def _mini_batches(
    rows: np.ndarray, batch_size: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    # Only full batches: a batch of one row has no statistics for a normalisation layer.
    size = min(batch_size, len(rows))
    while True:
        order = rng.permutation(rows)
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}


def _set_training_mode(model: nn.Module, learn_statistics: bool) -> None:
    model.train(learn_statistics)
    for module in model.modules():
        # cuDNN computes no gradients for a recurrent layer in evaluation mode.
        if isinstance(module, nn.RNNBase):
            module.train()


@contextmanager
def _mode_restored(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _seeded_torch(seed: int) -> Iterator[None]:
    # Dropout draws from torch's global generator; the caller's is given back untouched.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
