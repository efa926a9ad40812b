"""Train a student to follow its teachers on unlabelled inputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedcompress.distill.logits import kl_divergence, mode_restored, predict_logits
from fedcompress.distill.settings import check_settings
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
    hard_label_weight: float = 0.0,
    labels: Tensor | None = None,
    device: str = "cpu",
) -> DistilResult:
    """Train a student to give the teachers' logits on unlabelled inputs.

    Adam with a cosine schedule on the KL divergence (as Lin et al., 2020), stopped when the
    loss on held-out rows has not fallen for `patience` steps. The weights with the lowest
    held-out loss are kept, the start among them, so that a student is never left worse by
    this measure than it came.

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
    hard_label_weight : float
        Share of the loss, in [0, 1], that is the cross-entropy to one class for each row (Hinton
        et al., 2015); the rest is the divergence.
    labels : Tensor, optional
        That class, int64, shape ``(rows, ...)``, -1 where it is not known. Where it is not, it
        is the class that the teachers name.
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
        hard_label_weight=hard_label_weight,
    )
    _check_teacher_logits(inputs, teacher_logits)
    aim = _Aim(teacher_logits, _classes(teacher_logits, labels), temperature, hard_label_weight)
    train_rows, held_out_rows = _split_rows(len(inputs), holdout_fraction, rng)
    held_out_inputs, held_out = inputs[held_out_rows], aim.of(held_out_rows)

    def predict() -> Tensor:
        batch = max(batch_size, 1024)
        return predict_logits(student, held_out_inputs, batch_size=batch, device=device)

    start = predict()
    _check_student_logits(start, held_out.logits)
    best_loss = float(held_out.loss(start))
    kl_before = kl_after = float(held_out.divergence(start))
    best_step, stopped_early, step = 0, False, 0
    best_weights = _snapshot(student)
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    batches = _mini_batches(train_rows, batch_size, rng)
    with mode_restored(student), _seeded_torch(int(rng.integers(2**63))):
        _set_training_mode(student, learn_statistics)
        for step in range(1, steps + 1):
            rows = next(batches)
            optimiser.zero_grad(set_to_none=True)
            loss = aim.of(rows, device).loss(student(inputs[rows].to(device)))
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            if step % check_every != 0 and step != steps:
                continue
            logits = predict()
            held_out_loss = float(held_out.loss(logits))
            if held_out_loss < best_loss:
                best_loss, best_step, best_weights = held_out_loss, step, _snapshot(student)
                kl_after = float(held_out.divergence(logits))
            elif step - best_step >= patience:
                stopped_early = step < steps
                break
    student.to("cpu")
    student.load_state_dict(best_weights)
    agreement = predict().argmax(-1) == held_out.logits.argmax(-1)
    student.to("cpu")
    return DistilResult(
        steps=step,
        best_step=best_step,
        held_out_kl_before=kl_before,
        held_out_kl_after=kl_after,
        agreement=float(agreement.to(torch.float64).mean()),
        stopped_early=stopped_early,
    )


@dataclass(frozen=True)
class _Aim:
    """What a student is to say on some rows, and how far it is from that."""

    logits: Tensor
    classes: Tensor
    temperature: float
    hard_label_weight: float

    def of(self, rows: np.ndarray, device: str = "cpu") -> "_Aim":
        return replace(
            self, logits=self.logits[rows].to(device), classes=self.classes[rows].to(device)
        )

    def divergence(self, student_logits: Tensor) -> Tensor:
        return kl_divergence(student_logits, self.logits, self.temperature)

    def loss(self, student_logits: Tensor) -> Tensor:
        share = self.hard_label_weight
        if share == 0:
            return self.divergence(student_logits)
        hard = functional.cross_entropy(student_logits.flatten(0, -2), self.classes.flatten())
        return share * hard + (1 - share) * self.divergence(student_logits)


def _classes(teacher_logits: Tensor, labels: Tensor | None) -> Tensor:
    named = teacher_logits.argmax(-1)
    if labels is None:
        return named
    if labels.shape != named.shape or labels.dtype != torch.int64:
        raise LayoutError(
            f"distil: labels must be int64 of shape {tuple(named.shape)}, got {labels.dtype} of "
            f"shape {tuple(labels.shape)}"
        )
    if bool((labels < -1).any()) or bool((labels >= teacher_logits.shape[-1]).any()):
        raise ConfigError(
            f"distil: labels must be classes 0 to {teacher_logits.shape[-1] - 1}, or -1 where "
            f"not known, got {int(labels.min())} to {int(labels.max())}"
        )
    return torch.where(labels < 0, named, labels)


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
def _seeded_torch(seed: int) -> Iterator[None]:
    # Dropout draws from torch's global generator; the caller's is given back untouched.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
