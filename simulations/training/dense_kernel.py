"""Training of a stack of dense layers on one client's samples, compiled as one loop.

A step of a small dense model is some microseconds of arithmetic; in eager PyTorch more goes into
calling its fifty operations. Here a client's whole training is one call, and the update of the
weights happens inside the product that computes their gradient.

The two products are written so that LLVM keeps their tiles in vector registers: sums over the
features for four rows by four units at a time, sums over rows for eight units at a time. Sums are
reordered and multiplications fused with additions, so the last bits depend on the processor, as
those of PyTorch's own products do.
"""

from typing import Any

import numpy as np

from simulations.training.kernel_disk import read_from_disk
from simulations.training.kernel_parts import (
    ADAMW,
    SGD,
    ZERO,
    activate,
    adam_step,
    begin_change,
    cross_entropy,
    part,
    through_activation,
    whole,
)

Array = np.ndarray[Any, np.dtype[Any]]

ROWS = 4  # batches are filled up to a multiple of this with rows of zeros


@part
def _forward(x: Array, w: Array, z: Array) -> None:
    """Set z[b, o] to the product of x[b] and w[o]; x has a multiple of `ROWS` rows."""
    units, features = w.shape
    for b in range(0, x.shape[0], 4):
        for o in range(0, units - 3, 4):
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = ZERO
            s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = ZERO
            for k in range(features):
                w0, w1, w2, w3 = w[o, k], w[o + 1, k], w[o + 2, k], w[o + 3, k]
                x0, x1, x2, x3 = x[b, k], x[b + 1, k], x[b + 2, k], x[b + 3, k]
                s00 += x0 * w0
                s01 += x0 * w1
                s02 += x0 * w2
                s03 += x0 * w3
                s10 += x1 * w0
                s11 += x1 * w1
                s12 += x1 * w2
                s13 += x1 * w3
                s20 += x2 * w0
                s21 += x2 * w1
                s22 += x2 * w2
                s23 += x2 * w3
                s30 += x3 * w0
                s31 += x3 * w1
                s32 += x3 * w2
                s33 += x3 * w3
            z[b, o], z[b, o + 1], z[b, o + 2], z[b, o + 3] = s00, s01, s02, s03
            z[b + 1, o], z[b + 1, o + 1], z[b + 1, o + 2], z[b + 1, o + 3] = s10, s11, s12, s13
            z[b + 2, o], z[b + 2, o + 1], z[b + 2, o + 2], z[b + 2, o + 3] = s20, s21, s22, s23
            z[b + 3, o], z[b + 3, o + 1], z[b + 3, o + 2], z[b + 3, o + 3] = s30, s31, s32, s33
        for o in range(units - units % 4, units):
            s0 = s1 = s2 = s3 = ZERO
            for k in range(features):
                w0 = w[o, k]
                s0 += x[b, k] * w0
                s1 += x[b + 1, k] * w0
                s2 += x[b + 2, k] * w0
                s3 += x[b + 3, k] * w0
            z[b, o], z[b + 1, o], z[b + 2, o], z[b + 3, o] = s0, s1, s2, s3


@part
def _add_product(c: Array, a: Array, b: Array) -> None:
    """Add the matrix product of a and b to c."""
    rows, width = c.shape
    inner = b.shape[0]
    for r in range(0, rows - 7, 8):
        for k in range(0, inner - 3, 4):
            a00, a01, a02, a03 = a[r, k], a[r, k + 1], a[r, k + 2], a[r, k + 3]
            a10, a11, a12, a13 = a[r + 1, k], a[r + 1, k + 1], a[r + 1, k + 2], a[r + 1, k + 3]
            a20, a21, a22, a23 = a[r + 2, k], a[r + 2, k + 1], a[r + 2, k + 2], a[r + 2, k + 3]
            a30, a31, a32, a33 = a[r + 3, k], a[r + 3, k + 1], a[r + 3, k + 2], a[r + 3, k + 3]
            a40, a41, a42, a43 = a[r + 4, k], a[r + 4, k + 1], a[r + 4, k + 2], a[r + 4, k + 3]
            a50, a51, a52, a53 = a[r + 5, k], a[r + 5, k + 1], a[r + 5, k + 2], a[r + 5, k + 3]
            a60, a61, a62, a63 = a[r + 6, k], a[r + 6, k + 1], a[r + 6, k + 2], a[r + 6, k + 3]
            a70, a71, a72, a73 = a[r + 7, k], a[r + 7, k + 1], a[r + 7, k + 2], a[r + 7, k + 3]
            for j in range(width):
                b0, b1, b2, b3 = b[k, j], b[k + 1, j], b[k + 2, j], b[k + 3, j]
                c[r, j] += a00 * b0 + a01 * b1 + a02 * b2 + a03 * b3
                c[r + 1, j] += a10 * b0 + a11 * b1 + a12 * b2 + a13 * b3
                c[r + 2, j] += a20 * b0 + a21 * b1 + a22 * b2 + a23 * b3
                c[r + 3, j] += a30 * b0 + a31 * b1 + a32 * b2 + a33 * b3
                c[r + 4, j] += a40 * b0 + a41 * b1 + a42 * b2 + a43 * b3
                c[r + 5, j] += a50 * b0 + a51 * b1 + a52 * b2 + a53 * b3
                c[r + 6, j] += a60 * b0 + a61 * b1 + a62 * b2 + a63 * b3
                c[r + 7, j] += a70 * b0 + a71 * b1 + a72 * b2 + a73 * b3
        for k in range(inner - inner % 4, inner):
            for q in range(r, r + 8):
                single = a[q, k]
                for j in range(width):
                    c[q, j] += single * b[k, j]
    for r in range(rows - rows % 8, rows):
        for k in range(0, inner - 3, 4):
            a0, a1, a2, a3 = a[r, k], a[r, k + 1], a[r, k + 2], a[r, k + 3]
            for j in range(width):
                c[r, j] += a0 * b[k, j] + a1 * b[k + 1, j] + a2 * b[k + 2, j] + a3 * b[k + 3, j]
        for k in range(inner - inner % 4, inner):
            single = a[r, k]
            for j in range(width):
                c[r, j] += single * b[k, j]


def _train_dense(
    parameters: Array,
    pixels: Array,
    targets: Array,
    order: Array,
    epochs: int,
    batch_size: int,
    scale: Array,
    shift: Array,
    weights_at: Array,
    biases_at: Array,
    sizes: Array,
    activations: Array,
    optimizer: int,
    learning_rate: np.float32,
    momentum: np.float32,
    weight_decay: np.float32,
    proximal_mu: np.float32,
) -> float:
    """Train in place; return the mean loss of the batches, -1 where a target is no class.

    Parameters
    ----------
    parameters : float32 (p,)
        All weights, (units, features) each, and biases.
    pixels : uint8 (n, features)
        The samples, as stored.
    targets : int64 (n,)
        Their classes.
    order : int64 (epochs * rows,)
        Rows in the order in which they are trained on.
    epochs, batch_size : int
    scale, shift : float32 (features,)
        What makes a pixel the model's input.
    weights_at, biases_at : int64 (layers,)
        Where each layer's weight and bias begin; -1: it has no bias.
    sizes : int64 (layers + 1,)
        Features of the input, then units of each layer.
    activations : int64 (layers,)
        What follows each layer.
    optimizer : int
    learning_rate, momentum, weight_decay, proximal_mu : float32
    """
    layers = len(weights_at)
    per_epoch = len(order) // epochs
    padded = (min(batch_size, per_epoch) + ROWS - 1) // ROWS * ROWS
    features = sizes[0]
    values = [np.zeros((padded, sizes[i]), np.float32) for i in range(layers + 1)]
    deltas = [np.zeros((padded, sizes[i + 1]), np.float32) for i in range(layers)]
    labels = np.zeros(padded, np.int64)
    one = np.float32(1)
    # Without momentum, decay or pull a gradient goes straight into the weights.
    is_plain = optimizer == SGD and momentum == 0 and weight_decay == 0 and proximal_mu == 0
    is_adam = optimizer != SGD
    anchor = parameters.copy() if proximal_mu > 0 else parameters[:0]
    change = parameters if is_plain else np.zeros_like(parameters)
    first = np.zeros_like(parameters) if is_adam else parameters[:0]
    second = np.zeros_like(parameters) if is_adam else parameters[:0]
    coupled = ZERO if optimizer == ADAMW else weight_decay
    loss, steps = 0.0, 0
    for start in range(0, epochs * per_epoch, per_epoch):
        for begin in range(start, start + per_epoch, batch_size):
            rows = min(batch_size, start + per_epoch - begin)
            filled = (rows + ROWS - 1) // ROWS * ROWS
            x = values[0][:filled]
            for b in range(rows):
                row = order[begin + b]
                labels[b] = targets[row]
                if not 0 <= labels[b] < sizes[layers]:
                    return -1.0
                for j in range(features):
                    x[b, j] = np.float32(pixels[row, j]) * scale[j] + shift[j]
            x[rows:] = ZERO
            for i in range(layers):
                units = sizes[i + 1]
                place = weights_at[i]
                w = parameters[place : place + units * sizes[i]].reshape((units, sizes[i]))
                z = values[i + 1][:filled]
                _forward(values[i][:filled], w, z)
                if biases_at[i] >= 0:
                    bias = parameters[biases_at[i] : biases_at[i] + units]
                    for b in range(filled):
                        for j in range(units):
                            z[b, j] += bias[j]
                activate(z, activations[i])
            factor = one / np.float32(rows)
            if is_plain:
                factor *= -learning_rate
            last = layers - 1
            loss += (
                cross_entropy(values[layers][:filled], labels, rows, factor, deltas[last][:filled])
                / rows
            )
            steps += 1
            if not is_plain:
                begin_change(change, parameters, anchor, momentum, coupled, proximal_mu)
            for i in range(layers - 1, -1, -1):
                units = sizes[i + 1]
                place = weights_at[i]
                delta = deltas[i][:filled]
                if i > 0:
                    # Before the weights change: they are those of the forward pass.
                    w = parameters[place : place + units * sizes[i]].reshape((units, sizes[i]))
                    below = deltas[i - 1][:filled]
                    below[:] = ZERO
                    _add_product(below, delta, w)
                    through_activation(below, values[i][:filled], activations[i - 1])
                into = change[place : place + units * sizes[i]].reshape((units, sizes[i]))
                _add_product(into, delta.T, values[i][:filled])
                if biases_at[i] >= 0:
                    bias = change[biases_at[i] : biases_at[i] + units]
                    for b in range(rows):
                        for j in range(units):
                            bias[j] += delta[b, j]
            if is_adam:
                adam_step(
                    parameters, change, first, second, steps, learning_rate, weight_decay - coupled
                )
            elif not is_plain:
                for p in range(len(parameters)):
                    parameters[p] -= learning_rate * change[p]
    return loss / steps


def _warm() -> None:
    """Train on next to nothing."""
    pixels, targets = np.zeros((1, 1), np.uint8), np.zeros(1, np.int64)
    for stored in (pixels, targets):
        stored.flags.writeable = False
    one, zero, none = np.ones(1, np.float32), np.zeros(1, np.int64), np.full(1, -1)
    sizes, rate = np.ones(2, np.int64), np.float32(0)
    train_dense(
        one, pixels, targets, zero, 1, 1, one, one, zero, none, sizes, zero, SGD,
        rate, rate, rate, rate,
    )  # fmt: skip


train_dense = whole(_train_dense)
read_from_disk(train_dense, ("simulations.training.kernel_parts",), _warm)
