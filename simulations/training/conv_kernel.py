"""Training of convolutions and dense layers on one client's samples, compiled as one loop.

Filters of 5 × 5 in minimal filtering take a third of the products, ReLU and pooling happen where
the outputs still lie in registers, and a sample goes through all convolutions before the next one
begins, so that what lies between them stays in the cache.
"""

from typing import Any

import numpy as np

from simulations.training.conv_memory import (
    ACTIVATION,
    BELOW,
    BIAS,
    CHOSEN,
    DELTA,
    DENSE_BIAS,
    FEATURES,
    FOUND,
    HEIGHT,
    HIGH,
    IN,
    INPUTS,
    OUT,
    OUT_ROW,
    OUTPUTS,
    PADDING,
    UNITS,
    VALUES,
    WEIGHT,
    WIDE,
    WIDTH,
)
from simulations.training.conv_steps import (
    add_direct_gradients,
    add_filter_gradients,
    add_product,
    backward,
    first_forward,
    forward,
    set_inner_products,
    set_product,
    transform_filters,
)
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


@part
def _read(m: Array, first: Array, to: int, pixels: Array, scale: Array, shift: Array) -> None:
    """Put a sample, stored as (channels, height, width), into the memory, channels innermost."""
    channels, padding = first[INPUTS], first[PADDING]
    row = first[WIDTH] * channels
    height, width = first[HEIGHT] - 2 * padding, first[WIDTH] - 2 * padding
    for c in range(channels):
        for y in range(height):
            start = to + (y + padding) * row + padding * channels + c
            stored = (c * height + y) * width
            for x in range(width):
                j = stored + x
                m[start + x * channels] = np.float32(pixels[j]) * scale[j] + shift[j]


@part
def _outputs_of(convolutions: Array, i: int, s: int, features: Array) -> tuple[int, int, int]:
    """Give where outputs of a sample go, how far apart their rows are, and where gradients are."""
    if i + 1 < len(convolutions):
        n = convolutions[i + 1]
        row = n[WIDTH] * n[INPUTS]
        inside = n[PADDING] * (row + n[INPUTS])
        return n[VALUES] + s * n[HEIGHT] * row + inside, row, n[BELOW] + inside
    layer = convolutions[i]
    there = s * features[FEATURES]
    return features[IN] + there, layer[WIDE] * layer[OUTPUTS], there


@part
def _rows(m: Array, start: int, rows: int, row: int, width: int) -> Array:
    """Give a view (rows, width) of the memory."""
    return m[start : start + rows * row].reshape((rows, row))[:, :width]


def _train_conv(
    m: Array,
    values: Array,
    source: Array,
    pixels: Array,
    targets: Array,
    order: Array,
    epochs: int,
    batch_size: int,
    scale: Array,
    shift: Array,
    convolutions: Array,
    dense: Array,
    change_at: int,
    scratch: int,
    below: int,
    optimizer: int,
    learning_rate: np.float32,
    momentum: np.float32,
    weight_decay: np.float32,
    proximal_mu: np.float32,
) -> float:
    """Train in place; return the mean loss of the batches, -1 where a target is no class.

    Parameters
    ----------
    m : float32 (n,)
        See `ConvMemory`, as for ``source``, ``convolutions``, ``dense``, ``change_at``, ``scratch``
        and ``below``.
    values : float32 (p,)
        The model's parameters.
    pixels : uint8 (n, features)
        The samples, as stored.
    targets : int64 (n,)
        Their classes.
    order : int64 (epochs * rows,)
        Rows in the order in which they are trained on.
    epochs, batch_size : int
    scale, shift : float32 (features,)
        What makes a pixel the model's input.
    optimizer : int
    learning_rate, momentum, weight_decay, proximal_mu : float32
    """
    count = len(source)
    for p in range(count):
        m[p] = values[source[p]] if source[p] >= 0 else ZERO
    layers, stack = len(convolutions), len(dense)
    first_layer, head = convolutions[0], dense[stack - 1]
    per_epoch = len(order) // epochs
    labels = np.zeros(batch_size, np.int64)
    one = np.float32(1)
    # Without momentum, decay or pull a gradient goes straight into the dense weights. Those of
    # filters are sums over many samples and places, each of which is small beside a weight.
    is_plain = optimizer == SGD and momentum == 0 and weight_decay == 0 and proximal_mu == 0
    is_adam = optimizer != SGD
    into = 0 if is_plain else change_at
    parameters, change = m[:count], m[into : into + count]
    filters = dense[0, WEIGHT]  # and biases: the parameters before the first dense layer's
    m[change_at : change_at + count] = ZERO
    anchor = parameters.copy() if proximal_mu > 0 else parameters[:0]
    first = np.zeros_like(parameters) if is_adam else parameters[:0]
    second = np.zeros_like(parameters) if is_adam else parameters[:0]
    coupled = ZERO if optimizer == ADAMW else weight_decay
    loss, steps = 0.0, 0
    for start in range(0, epochs * per_epoch, per_epoch):
        for begin in range(start, start + per_epoch, batch_size):
            rows = min(batch_size, start + per_epoch - begin)
            for i in range(1, layers):
                transform_filters(m, convolutions[i])
            for s in range(rows):
                row = order[begin + s]
                labels[s] = targets[row]
                if not 0 <= labels[s] < head[UNITS]:
                    return -1.0
                size = first_layer[HEIGHT] * first_layer[WIDTH] * first_layer[INPUTS]
                _read(m, first_layer, first_layer[VALUES] + s * size, pixels[row], scale, shift)
                for i in range(layers):
                    layer = convolutions[i]
                    x = layer[VALUES] + s * layer[HEIGHT] * layer[WIDTH] * layer[INPUTS]
                    chosen = layer[CHOSEN] + s * layer[HIGH] * layer[WIDE] * layer[OUTPUTS]
                    out, out_row, _ = _outputs_of(convolutions, i, s, dense[0])
                    if i == 0:
                        first_forward(m, layer, x, out, out_row, chosen)
                    else:
                        forward(m, layer, x, out, out_row, chosen, scratch)
            for i in range(stack):
                d = dense[i]
                set_inner_products(
                    m, d[OUT], d[OUT_ROW], rows, d[UNITS], d[IN], d[WEIGHT], d[FEATURES]
                )
                z = _rows(m, d[OUT], rows, d[OUT_ROW], d[UNITS])
                if d[DENSE_BIAS] >= 0:
                    for b in range(rows):
                        for u in range(d[UNITS]):
                            z[b, u] += m[d[DENSE_BIAS] + u]
                activate(z, d[ACTIVATION])
            factor = one / np.float32(rows)
            if is_plain:
                factor *= -learning_rate
            logits = _rows(m, head[OUT], rows, head[OUT_ROW], head[UNITS])
            delta = _rows(m, head[DELTA], rows, head[OUT_ROW], head[UNITS])
            loss += cross_entropy(logits, labels, rows, factor, delta) / rows
            steps += 1
            if not is_plain:
                begin_change(change, parameters, anchor, momentum, coupled, proximal_mu)
            for i in range(stack - 1, -1, -1):
                d = dense[i]
                to = dense[i - 1, DELTA] if i else below
                # Before the weights change: they are those of the forward pass.
                set_product(
                    m, to, d[FEATURES], rows, d[FEATURES], d[DELTA], d[OUT_ROW], 1,
                    d[WEIGHT], d[FEATURES], d[UNITS],
                )  # fmt: skip
                if i:
                    units = dense[i - 1, UNITS]
                    through_activation(
                        _rows(m, to, rows, d[FEATURES], units),
                        _rows(m, d[IN], rows, d[FEATURES], units),
                        dense[i - 1, ACTIVATION],
                    )
                add_product(
                    m, into + d[WEIGHT], d[FEATURES], d[UNITS], d[FEATURES], d[DELTA], 1,
                    d[OUT_ROW], d[IN], d[FEATURES], rows,
                )  # fmt: skip
                if d[DENSE_BIAS] >= 0:
                    for b in range(rows):
                        for u in range(d[UNITS]):
                            m[into + d[DENSE_BIAS] + u] += m[d[DELTA] + b * d[OUT_ROW] + u]
            for s in range(rows):
                for i in range(layers - 1, -1, -1):
                    layer = convolutions[i]
                    x = layer[VALUES] + s * layer[HEIGHT] * layer[WIDTH] * layer[INPUTS]
                    chosen = layer[CHOSEN] + s * layer[HIGH] * layer[WIDE] * layer[OUTPUTS]
                    out, out_row, g = _outputs_of(convolutions, i, s, dense[0])
                    if i + 1 == layers:
                        g += below
                    if i == 0 or is_adam:
                        add_direct_gradients(
                            m, layer, change_at, x, g, out, out_row, chosen, scratch
                        )
                    if i > 0:
                        bias = layer[FOUND] if is_adam else change_at + layer[BIAS]
                        backward(
                            m,
                            layer,
                            bias,
                            x,
                            g,
                            out,
                            out_row,
                            chosen,
                            scratch,
                            layer[BELOW],
                            not is_adam,
                        )
            for i in range(layers if is_adam else 1, layers):
                add_filter_gradients(m, convolutions[i], change_at)
            if is_adam:
                adam_step(
                    parameters, change, first, second, steps, learning_rate, weight_decay - coupled
                )
            elif is_plain:
                for p in range(filters):
                    m[p] += m[change_at + p]
                    m[change_at + p] = ZERO
            else:
                for p in range(count):
                    parameters[p] -= learning_rate * change[p]
    for p in range(count):
        if source[p] >= 0:
            values[source[p]] = m[p]
    return loss / steps


def _warm() -> None:
    """Train on one sample of no class."""
    pixels, targets = np.zeros((1, 1), np.uint8), np.zeros(1, np.int64)
    for stored in (pixels, targets):
        stored.flags.writeable = False
    numbers, places, table = (
        np.zeros(1, np.float32),
        np.zeros(1, np.int64),
        np.zeros((1, 16), np.int64),
    )
    rate = np.float32(0)
    train_conv(
        numbers, numbers, places, pixels, targets, places, 1, 1, numbers, numbers, table, table,
        0, 0, 0, SGD, rate, rate, rate, rate,
    )  # fmt: skip


_PARTS = ("conv_memory", "conv_parts", "conv_steps", "kernel_parts", "lanes", "winograd")
train_conv = whole(_train_conv)
read_from_disk(train_conv, [f"simulations.training.{name}" for name in _PARTS], _warm)
