"""Arrays of a file that a person gives: checked before they are believed."""

import math
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from fedcompress.errors import ConfigError

_REAL_NUMBERS = "biuf"
"""Kinds of numpy dtypes: booleans, integers, unsigned integers, floats."""


def read_arrays(file: Path) -> dict[str, Tensor]:
    """Read the arrays of a ``.npy`` or ``.safetensors`` file, by name, in this machine's order.

    Raises
    ------
    ConfigError
        If there is no such file, it is cut off, or it holds something else than real numbers.
    """
    if not file.is_file():
        raise ConfigError(f"try: there is no file {str(file)!r}; give a .npy or .safetensors file")
    if file.suffix == ".safetensors":
        arrays = _read_safetensors(file)
    elif file.suffix == ".npy":
        arrays = {file.stem: _read_npy(file)}
    else:
        raise ConfigError(f"try: cannot read {file.name!r}; give a .npy or .safetensors file")
    for name, values in arrays.items():
        if values.is_complex():
            raise _complex(file, name)
    return arrays


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(file))
    except SafetensorError as error:
        raise ConfigError(f"try: {file} is no safetensors file ({error})") from error


def _read_npy(file: Path) -> Tensor:
    with file.open("rb") as opened:
        shape, dtype = _header(opened, file)
        if dtype.kind == "c":
            raise _complex(file, file.stem)
        if dtype.kind not in _REAL_NUMBERS or min(shape, default=0) < 0:
            raise ConfigError(
                f"try: {file} holds {dtype} of shape {shape}; save real numbers, such as float32"
            )
        claimed = math.prod(shape) * dtype.itemsize
        held = file.stat().st_size - opened.tell()
    if claimed > held:
        raise ConfigError(
            f"try: {file} is cut off: its header says {dtype} of shape {shape}, {claimed:,} bytes, "
            f"and {held:,} follow; save the array again"
        )
    try:
        values = np.load(file, allow_pickle=False)
        return torch.from_numpy(np.array(values, values.dtype.newbyteorder("=")))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"try: cannot use the {dtype} of {file}; save it as float32") from error


def _header(opened: BinaryIO, file: Path) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Read shape and dtype, and leave the file where the numbers begin."""
    # The third version only adds names of fields, which numbers do not have.
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    try:
        shape, _, dtype = readers[npy.read_magic(opened)](opened)
    except (ValueError, KeyError, EOFError, SyntaxError) as error:
        # numpy's own words advise to unpickle the file, which runs what it holds.
        raise ConfigError(f"try: {file} is no .npy file of numbers; save it by np.save") from error
    return shape, dtype


def _complex(file: Path, name: str) -> ConfigError:
    return ConfigError(
        f"try: array {name!r} of {file} is complex, and updates are real; save its real and "
        "imaginary parts as arrays of their own"
    )
