"""Weights as small whole numbers: what int8, int4 and a codebook mean in every format.

A quantized weight is stored as two arrays: its levels, and beside them ``<name>.scale`` (one
float32 for each output channel; the weight is levels × scale) or ``<name>.values`` (the codebook;
the weight is values[levels]).
"""

import copy
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fedcompress import parse, rng_for
from fedcompress.checks import near
from fedcompress.errors import ConfigError

BITS: Mapping[str, int] = {"int8": 8, "int4": 4}
KINDS = (*BITS, "codebook")
SCALE, VALUES = ".scale", ".values"
CENTROIDS = 16
_EVERY = 20  # steps between two searches for a codebook


def check_kind(kind: str) -> str:
    """Refuse a way to quantize that there is not.

    Raises
    ------
    ConfigError
        Names those that there are.
    """
    if kind not in KINDS:
        raise ConfigError(f"export: quantize must be {', '.join(KINDS)}; {near(kind, [*KINDS])}")
    return kind


def codebook_spec(centroids: int = CENTROIDS) -> str:
    """Give the compressor that finds a codebook, zero among its values, and codes the indices."""
    return f'codebook({centroids}, zero="yes") | entropy()'


def is_weight(value: Tensor) -> bool:
    """Whether an array is quantized: matrices, kernels and tables of floats."""
    return value.is_floating_point() and value.ndim >= 2


def to_levels(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Round to ``2**bits − 1`` symmetric levels for each output channel (the first axis).

    Returns
    -------
    levels : Tensor
        int8, the shape of the weight.
    scale : Tensor
        float32, shape (rows, 1, ...).
    """
    most = 2 ** (bits - 1) - 1
    largest = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
    scale = torch.where(largest > 0, largest / most, torch.ones_like(largest))
    return (weight / scale).round().clamp(-most, most).to(torch.int8), scale


def to_codebook(weight: Tensor, centroids: int = CENTROIDS) -> tuple[Tensor, Tensor]:
    """Round to the nearest of a few values, found by k-means.

    Returns
    -------
    indices : Tensor
        uint8, the shape of the weight.
    values : Tensor
        float32, ascending.
    """
    compressor = parse(codebook_spec(centroids))
    payload, _ = compressor.encode({"w": weight}, {}, rng_for(0))
    rounded = compressor.decode(payload, {"w": weight})["w"]
    values, indices = torch.unique(rounded, return_inverse=True)
    return indices.to(torch.uint8), values


def rounded(weight: Tensor, kind: str, centroids: int = CENTROIDS) -> Tensor:
    """Give the weight as it is after it was quantized."""
    if kind in BITS:
        levels, scale = to_levels(weight, BITS[kind])
        return levels * scale
    indices, values = to_codebook(weight, centroids)
    return values[indices.long()]


def rounding_of(kind: str, centroids: int = CENTROIDS) -> Callable[[str, Tensor], Tensor]:
    """Give what rounds weights while they are trained; a codebook is found anew now and then."""
    if kind in BITS:
        return lambda _, weight: rounded(weight, kind)
    tables: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def round_(name: str, weight: Tensor) -> Tensor:
        if calls[name] % _EVERY == 0:
            _, tables[name] = to_codebook(weight, centroids)
        calls[name] += 1
        values = tables[name]
        return values[torch.bucketize(weight.contiguous(), (values[1:] + values[:-1]) / 2)]

    return round_


def round_weights(model: nn.Module, kind: str, centroids: int = CENTROIDS) -> nn.Module:
    """Copy a model with its weights rounded, still as floats."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            if is_weight(parameter):
                parameter.copy_(rounded(parameter.detach(), kind, centroids))
    return copied


def stored_arrays(
    model: nn.Module, kind: str | None, centroids: int = CENTROIDS
) -> dict[str, Tensor]:
    """Give a model's arrays as they are written: quantized weights as levels."""
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    stored: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        array = value.detach().cpu().contiguous()
        if kind is None or name not in weights or not is_weight(array):
            stored[name] = array
        elif kind in BITS:
            stored[name], stored[name + SCALE] = to_levels(array, BITS[kind])
        else:
            stored[name], stored[name + VALUES] = to_codebook(array, centroids)
    return stored


def restored_arrays(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the arrays of the model back from what `stored_arrays` gave."""
    arrays: dict[str, Tensor] = {}
    for name, array in stored.items():
        if name + SCALE in stored:
            arrays[name] = array * stored[name + SCALE]
        elif name + VALUES in stored:
            arrays[name] = stored[name + VALUES][array.long()]
        elif not _belongs(name, stored):
            arrays[name] = array
    return arrays


def _belongs(name: str, stored: Mapping[str, Tensor]) -> bool:
    return any(name.endswith(end) and name.removesuffix(end) in stored for end in (SCALE, VALUES))
