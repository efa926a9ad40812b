"""Logits of a model, and how far those of two models are apart.

Logits have shape ``(rows, ..., classes)``, the classes last.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional


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
    with mode_restored(model), torch.no_grad():
        model.eval()
        parts = [
            model(batch.to(device)).to("cpu", torch.float32)
            for batch in torch.split(inputs, batch_size)
        ]
    return torch.cat(parts)


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


@contextmanager
def mode_restored(model: nn.Module) -> Iterator[None]:
    """Give every module its mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
