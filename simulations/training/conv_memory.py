"""Where everything lies that the compiled training of convolutions reads and writes: one array.

Channels are filled up to whole vectors and lie innermost, in images as in filters, and the first
dense layer's features are in the order of the last convolution's outputs. Parameters, as they lie
in the model, are therefore put in another order before a client's training, and back after it.
What is filled up begins as 0 and stays so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from simulations.training.conv import ConvLayer, ConvStack

Array = np.ndarray[Any, np.dtype[Any]]

LANES = 16  # float32 numbers of a vector
ROWS = 4  # dense layers take the rows of a batch by so many
# Columns of the tables, for compiled code.
(
    TAPS,
    INPUTS,  # channels, of the first layer as they are, of others filled up
    HEIGHT,  # of the input with zeros around it
    WIDTH,
    PADDING,
    HIGH,  # rows and columns of pooled outputs
    WIDE,
    OUTPUTS,  # channels, filled up
    FILTERS,
    BIAS,
    VALUES,  # the inputs of a batch
    CHOSEN,  # which of four was the largest
    TRANSFORMED,  # filters (tap, input, output)
    TURNED,  # and (tap, output, input)
    FOUND,  # the gradient of the transformed filters
    BELOW,  # the gradient of one sample's input
) = range(16)
(UNITS, FEATURES, WEIGHT, DENSE_BIAS, ACTIVATION, IN, OUT, OUT_ROW, DELTA) = range(9)


@final
@dataclass(frozen=True)
class ConvMemory:
    """Memory for batches up to a size, and what lies where.

    Attributes
    ----------
    memory : numpy.ndarray
        float32 (n,); begins with the parameters.
    source : numpy.ndarray
        For each of the parameters there its place in the model's vector, -1 for what fills up.
    convolutions, dense : numpy.ndarray
        int64 (layers, columns), see above.
    change, scratch, below : int
        Where gradients of the parameters begin, what is computed on the way for one sample, and
        the gradient of the first dense layer's input.
    batch_size : int
        Samples that there is room for.
    """

    memory: Array
    source: Array
    convolutions: Array
    dense: Array
    change: int
    scratch: int
    below: int
    batch_size: int


def image_sizes(stack: ConvStack, image: tuple[int, ...]) -> list[tuple[int, int, int, int]] | None:
    """Give height and width of each input with zeros around it, and of each pooled output.

    None where an image (channels, height, width) does not fit the model.
    """
    channels, height, width = image
    sizes = []
    for layer in stack.convolutions:
        if layer.channels_in != channels:
            return None
        around, lost = 2 * layer.padding, layer.taps - 1
        padded = (height + around, width + around)
        height, width = ((side - lost) // 2 for side in padded)
        if min(height, width) < 1:
            return None
        channels = layer.channels_out
        sizes.append((*padded, height, width))
    return sizes if stack.dense[0].features == channels * height * width else None


def filled_up(size: int) -> int:
    """Give the next multiple of `LANES`."""
    return -(-size // LANES) * LANES


def lay_out(
    stack: ConvStack,
    image: tuple[int, ...],
    places: Mapping[str, Array],
    activations: Mapping[str | None, int],
    batch_size: int,
) -> ConvMemory:
    """Lay out the memory for a model.

    Parameters
    ----------
    stack : ConvStack
        The model's layers.
    image : tuple of int
        Channels, height and width of a sample, which fits the model.
    places : dict of str to numpy.ndarray
        For each parameter, shaped as it is, the places of its numbers in the model's vector.
    activations : dict
        Numbers of the activations by name.
    batch_size : int
        The most samples in a batch.
    """
    room = _Room()
    sources: list[Array] = []

    def place_of(source: Array) -> int:
        sources.append(_extended(source.reshape(-1), filled_up(source.size)))
        return room.take(source.size)

    convolutions, channels = [], image[0]
    sizes = image_sizes(stack, image) or []
    for layer, (rows, columns, high, wide) in zip(stack.convolutions, sizes, strict=True):
        outputs = filled_up(layer.channels_out)
        filters = _filters(places[layer.weight], channels, outputs)
        bias = _extended(places[layer.bias], outputs)
        head = [layer.taps, channels, rows, columns, layer.padding, high, wide, outputs]
        convolutions.append([*head, place_of(filters), place_of(bias)])
        channels = outputs
    _, _, high, wide = sizes[-1]
    dense = []
    for number, units in enumerate(stack.dense):
        weight = places[units.weight]
        if number == 0:
            weight = _by_pixel(weight, stack.convolutions[-1], (high, wide))
        else:
            weight = _extended(weight, filled_up(weight.shape[1]))
        bias_at = place_of(places[units.bias]) if units.bias else -1
        dense.append(
            [units.units, weight.shape[1], place_of(weight), bias_at, activations[units.activation]]
        )
    change = room.take(room.taken)
    scratch = max(_room_for_images(table, room, batch_size) for table in convolutions)
    below = _room_for_rows(dense, room, batch_size)
    scratch_at = room.take(scratch)
    return ConvMemory(
        np.zeros(room.taken, np.float32),
        np.concatenate(sources),
        np.array(convolutions),
        np.array(dense),
        change,
        scratch_at,
        below,
        batch_size,
    )


@final
class _Room:
    """What is taken of the memory so far, in whole vectors."""

    def __init__(self) -> None:
        self.taken = 0

    def take(self, size: int) -> int:
        place, self.taken = self.taken, self.taken + filled_up(size)
        return place


def _room_for_images(table: list[int], room: _Room, batch_size: int) -> int:
    """Take what a convolution needs; give what it needs on the way."""
    taps, inputs, rows, columns, _, high, wide, outputs, *_ = table
    frequencies = (taps + 1) ** 2
    filters = frequencies * inputs * outputs
    image = rows * columns * inputs
    table += [room.take(batch_size * image), room.take(batch_size * high * wide * outputs)]
    table += [room.take(filters), room.take(filters), room.take(filters), room.take(image)]
    return frequencies * high * wide * (inputs + outputs)


def _room_for_rows(dense: list[list[int]], room: _Room, batch_size: int) -> int:
    """Take what dense layers need; give where the gradient of their input goes."""
    rows = -(-batch_size // ROWS) * ROWS
    below, values = (room.take(rows * dense[0][FEATURES]) for _ in range(2))
    for table in dense:
        width = filled_up(table[UNITS])
        table += [values, room.take(rows * width), width, room.take(rows * width)]
        values = table[OUT]
    return below


def _filters(places: Array, channels: int, outputs: int) -> Array:
    """Turn (outputs, inputs, taps, taps) into (taps, taps, channels, outputs), filled up."""
    there = np.full((*places.shape[2:], channels, outputs), -1)
    there[:, :, : places.shape[1], : places.shape[0]] = places.transpose(2, 3, 1, 0)
    return there


def _by_pixel(places: Array, before: ConvLayer, pixels: Sequence[int]) -> Array:
    """Turn features from (channels, height, width) to (height, width, channels), filled up."""
    units = len(places)
    by_channel = places.reshape(units, before.channels_out, *pixels)
    there = np.full((units, *pixels, filled_up(before.channels_out)), -1)
    there[..., : before.channels_out] = by_channel.transpose(0, 2, 3, 1)
    return there.reshape(units, -1)


def _extended(places: Array, size: int) -> Array:
    """Fill the last axis up."""
    there = np.full((*places.shape[:-1], size), -1)
    there[..., : places.shape[-1]] = places
    return there
