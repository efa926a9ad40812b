"""What compiled loops have in common: activations, the loss, and the steps of optimisers."""

from typing import Any

import numpy as np
from numba import njit

Array = np.ndarray[Any, np.dtype[Any]]

RELU, TANH, SIGMOID = 1, 2, 3
ACTIVATIONS = {None: 0, "relu": RELU, "tanh": TANH, "sigmoid": SIGMOID}
SGD, ADAM, ADAMW = 0, 1, 2
OPTIMIZERS = {"sgd": SGD, "adam": ADAM, "adamw": ADAMW}
ZERO = np.float32(0)

_FREEDOM = {"contract", "reassoc", "nsz", "arcp"}
# Only the whole of a loop is kept on disk. Had each part a file of its own, then how they are
# optimised together, and so the last bits, would depend on which files were there.
part = njit(nogil=True, error_model="numpy", fastmath=_FREEDOM)
whole = njit(cache=True, nogil=True, error_model="numpy", fastmath=_FREEDOM)


@part
def activate(z: Array, kind: int) -> None:
    """Apply an activation in place."""
    rows, width = z.shape
    if kind == RELU:
        for b in range(rows):
            for j in range(width):
                z[b, j] = z[b, j] if z[b, j] > ZERO or z[b, j] != z[b, j] else ZERO
    elif kind == TANH:
        for b in range(rows):
            for j in range(width):
                z[b, j] = np.tanh(z[b, j])
    elif kind == SIGMOID:
        for b in range(rows):
            for j in range(width):
                z[b, j] = np.float32(1) / (np.float32(1) + np.exp(-z[b, j]))


@part
def through_activation(delta: Array, a: Array, kind: int) -> None:
    """Multiply by the derivative of an activation whose values are a."""
    rows, width = a.shape
    one = np.float32(1)
    if kind == RELU:
        for b in range(rows):
            for j in range(width):
                delta[b, j] = delta[b, j] if a[b, j] > ZERO else ZERO
    elif kind == TANH:
        for b in range(rows):
            for j in range(width):
                delta[b, j] *= one - a[b, j] * a[b, j]
    elif kind == SIGMOID:
        for b in range(rows):
            for j in range(width):
                delta[b, j] *= a[b, j] * (one - a[b, j])


@part
def cross_entropy(
    logits: Array, targets: Array, rows: int, factor: np.float32, delta: Array
) -> float:
    """Give the sum of the losses; set delta to their gradients times a factor."""
    classes = logits.shape[1]
    total = 0.0
    for b in range(rows):
        top = logits[b, 0]
        for j in range(classes):
            top = max(top, logits[b, j])
        norm = ZERO
        for j in range(classes):
            delta[b, j] = np.exp(logits[b, j] - top)
            norm += delta[b, j]
        target = targets[b]
        total += np.log(norm) - (logits[b, target] - top)
        share = factor / norm
        for j in range(classes):
            delta[b, j] *= share
        delta[b, target] -= factor
    delta[rows:] = ZERO
    return total


@part
def begin_change(
    change: Array,
    parameters: Array,
    anchor: Array,
    momentum: np.float32,
    decay: np.float32,
    proximal_mu: np.float32,
) -> None:
    """Set what gradients are added to: what is left of the last change, decay, and the pull."""
    for p in range(len(parameters)):
        change[p] = momentum * change[p] + decay * parameters[p]
    if proximal_mu > 0:
        for p in range(len(parameters)):
            change[p] += proximal_mu * (parameters[p] - anchor[p])


@part
def adam_step(
    parameters: Array,
    change: Array,
    first: Array,
    second: Array,
    taken: int,
    learning_rate: np.float32,
    decay: np.float32,
) -> None:
    """Take a step of Adam, the first being number 1, after shrinking the weights by a decay."""
    one, beta1, beta2 = np.float32(1), np.float32(0.9), np.float32(0.999)
    epsilon = np.float32(1e-8)
    size = np.float32(learning_rate / (1 - 0.9**taken))
    unbias = np.float32(1 / np.sqrt(1 - 0.999**taken))
    kept = one - learning_rate * decay
    for p in range(len(parameters)):
        g = change[p]
        change[p] = ZERO
        first[p] = beta1 * first[p] + (one - beta1) * g
        second[p] = beta2 * second[p] + (one - beta2) * g * g
        parameters[p] = kept * parameters[p] - size * first[p] / (
            np.sqrt(second[p]) * unbias + epsilon
        )
