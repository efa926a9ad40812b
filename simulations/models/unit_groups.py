"""Which entries of a network stand or fall together, found by switching its units off.

A unit whose rows and bias are 0 gives 0 to whatever reads it, so the gradients of the weights that
it is multiplied by vanish. Whatever had a gradient and has none without the unit is of no use:
columns of the next layer, whether it flattens, pools or attends in between, and the scale and
shift of a normalisation. Nothing has to be known of how layers are connected.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from fedcompress.pruning import UnitGroup
from simulations.models.transformer import HEAD_SIZE, Attention

Rows = dict[str, Tensor]
_GATES = {nn.LSTM: 4, nn.GRU: 3}


def unit_groups(model: nn.Module, inputs: Tensor) -> list[UnitGroup]:
    """Find the units of every layer that others read: filters, hidden and recurrent units, heads.

    The outputs have none. Of a layer whose units are added to others, as in a residual stream, only
    the scale of its normalisation falls with them.

    Parameters
    ----------
    model : torch.nn.Module
        Its architecture matters, its weights do not; it is left as it was.
    inputs : Tensor
        Some rows, as the model takes them.

    Returns
    -------
    list of UnitGroup
        One for each such layer, in the model's order.
    """
    probe = _probe(model)
    parameters = dict(probe.named_parameters())
    if inputs.is_floating_point():
        inputs = inputs.abs()
    used = _used(probe, parameters, inputs)
    found = (_group(probe, parameters, inputs, used, rows) for rows in _layers(probe))
    return [group for group in found if group is not None]


def _layers(model: nn.Module) -> Iterator[Rows]:
    """Give, for each layer, which rows of which arrays make each of its units: (units, rows)."""
    in_attention = {
        id(part)
        for module in model.modules()
        if isinstance(module, Attention)
        for part in (module.query, module.key, module.value)
    }
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, nn.Linear | nn.Conv2d) and id(module) not in in_attention:
            yield _rows(prefix, module, ("weight", "bias"), len(module.weight), 1, 1)
        elif isinstance(module, Attention):
            heads = len(module.value.weight) // HEAD_SIZE
            yield {
                name: at
                for layer in ("query", "key", "value")
                for name, at in _rows(
                    f"{prefix}{layer}.",
                    getattr(module, layer),
                    ("weight", "bias"),
                    heads,
                    1,
                    HEAD_SIZE,
                ).items()
            }
        elif type(module) in _GATES:
            for number in range(int(getattr(module, "num_layers"))):  # noqa: B009  of either kind
                names = [
                    f"{kind}_{of}_l{number}" for kind in ("weight", "bias") for of in ("ih", "hh")
                ]
                size = int(getattr(module, "hidden_size"))  # noqa: B009
                yield _rows(prefix, module, tuple(names), size, _GATES[type(module)], 1)


def _rows(
    prefix: str, module: nn.Module, names: tuple[str, ...], count: int, gates: int, each: int
) -> Rows:
    """Give the rows of units: ``each`` neighbouring ones in each of the gates."""
    at = torch.arange(count)[:, None] * each + torch.arange(each)
    at = torch.cat([at + gate * count * each for gate in range(gates)], 1)
    there = dict(module.named_parameters(recurse=False))
    return {prefix + name: at for name in names if name in there}


def _probe(model: nn.Module) -> nn.Module:
    """Copy a model with positive weights, under which every unit is on and no gradient cancels."""
    probe = deepcopy(model).cpu().eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in probe.parameters():
            reads = parameter[0].numel() if parameter.dim() > 1 else 1
            noise = torch.rand(parameter.shape, generator=draw, dtype=parameter.dtype)
            parameter.copy_((0.5 + noise) / reads)
        for module in probe.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
                if module.affine:  # else a channel of zeros would come out as its shift
                    module.bias.zero_()
    return probe


def _used(model: nn.Module, parameters: Mapping[str, nn.Parameter], inputs: Tensor) -> Rows:
    logits = model(inputs)
    draw = torch.Generator().manual_seed(1)
    weights = 0.5 + torch.rand(logits.shape, generator=draw)
    total = (logits * weights).sum()
    gradients = torch.autograd.grad(
        total, list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    return {name: g != 0 for name, g in zip(parameters, gradients, strict=True)}


def _group(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    inputs: Tensor,
    used: Rows,
    rows: Rows,
) -> UnitGroup | None:
    before = {name: parameters[name].detach().clone() for name in rows}
    found: dict[tuple[str, int], list[Tensor]] = {}
    count = len(next(iter(rows.values())))
    for unit in range(count):
        with torch.no_grad():
            for name, at in rows.items():
                parameters[name][at[unit]] = 0
        left = _used(model, parameters, inputs)
        with torch.no_grad():
            for name, x in before.items():
                parameters[name].copy_(x)
        for name, x in used.items():
            lost = x & ~left[name]
            if name in rows:  # of the unit's own arrays: its rows are known, columns are not
                lost[rows[name][unit]] = False
            place = _place(lost)
            if place is not None:
                found.setdefault((name, place[0]), []).append(place[1])
    readers = {
        at: torch.stack(positions)
        for at, positions in found.items()
        if len(positions) == count and len({len(one) for one in positions}) == 1
    }
    if not readers:
        return None
    return {**{(name, 0): at for name, at in rows.items()}, **readers}


def _place(lost: Tensor) -> tuple[int, Tensor] | None:
    """Give the axis along which entries were lost, and where: that of which the least was."""
    if not bool(lost.any()):
        return None
    if lost.dim() < 2:
        return 0, torch.nonzero(lost.reshape(-1)).reshape(-1)
    along = [lost.movedim(axis, 0).reshape(lost.shape[axis], -1).any(1) for axis in (0, 1)]
    axis = 0 if float(along[0].float().mean()) < float(along[1].float().mean()) else 1
    return axis, torch.nonzero(along[axis]).reshape(-1)
