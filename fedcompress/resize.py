"""A network rebuilt to other sizes of its layers: what the arrays of a pruned one load into."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedcompress.errors import LayoutError

Shapes = Mapping[str, Sequence[int]]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS_OF_CHANNELS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
_GATES = {"LSTM": 4, "GRU": 3}


def fit_to(model: nn.Module, shapes: Shapes) -> nn.Module:
    """Rebuild a model so that its arrays have the shapes given; what it computes stays the same.

    Dense, convolutional, recurrent, embedding and normalisation layers learn their new sizes.
    Arrays that stand directly in a module of another kind take their new shape; such a module
    must read its sizes from them. Whether neighbouring layers fit together is not checked.

    Parameters
    ----------
    model : nn.Module
        Stays as it is.
    shapes : mapping of str to sequence of int
        Shape of every array that ``model.state_dict()`` names.

    Returns
    -------
    nn.Module
        A copy. Arrays whose shape changed are zero and keep their dtype, device and memory order;
        the others keep their values. Load the state next.

    Raises
    ------
    LayoutError
        If a name is missing or unknown, the number of dimensions differs, or a layer cannot have
        the size asked for.

    Examples
    --------
    >>> from torch import nn
    >>> from fedcompress.resize import fit_to
    >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> fit_to(model, {"0.weight": (3, 8), "0.bias": (3,), "2.weight": (2, 3), "2.bias": (2,)})
    Sequential(
      (0): Linear(in_features=8, out_features=3, bias=True)
      (1): ReLU()
      (2): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    wanted = {name: tuple(int(size) for size in shape) for name, shape in shapes.items()}
    _check_shapes(model.state_dict(), wanted)
    fitted = copy.deepcopy(model)
    # By the old one's id, which stays its own while it is kept: what two layers share they share.
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for path, module in fitted.named_modules():
        before = _own_arrays(module)
        for key, old in before.items():
            shape = wanted.get(f"{path}.{key}" if path else key, tuple(old.shape))
            if shape != tuple(old.shape):
                _, new = made.setdefault(id(old), (old, _zeros_like(old, shape)))
                setattr(module, key, new)
        after = _own_arrays(module)
        if any(after[key].shape != old.shape for key, old in before.items()):
            _tell_sizes(path, module, before)
    return fitted


def _check_shapes(state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    if state.keys() != wanted.keys():
        missing, unknown = (
            sorted(state.keys() - wanted.keys()),
            sorted(wanted.keys() - state.keys()),
        )
        raise LayoutError(
            f"fit_to: no shapes for {missing}, unknown arrays {unknown}; give the shapes of a "
            "model of the same layers"
        )
    for name, x in state.items():
        if len(wanted[name]) != x.dim() or any(size < 0 for size in wanted[name]):
            raise LayoutError(
                f"fit_to: {name} has shape {tuple(x.shape)}, got {wanted[name]}; only sizes may "
                "change, not the number of dimensions"
            )


def _own_arrays(module: nn.Module) -> dict[str, Tensor]:
    held = {**module._parameters, **module._buffers}
    return {key: x for key, x in held.items() if x is not None}


def _zeros_like(old: Tensor, shape: tuple[int, ...]) -> Tensor:
    new = torch.zeros(shape, dtype=old.dtype, device=old.device)
    if old.dim() == 4:
        # By its strides: of an axis of size 1 torch calls both orders contiguous.
        last = torch.empty(old.shape, device="meta").to(memory_format=torch.channels_last)
        if old.stride() == last.stride():
            new = new.to(memory_format=torch.channels_last)
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def _tell_sizes(path: str, module: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Give a layer the sizes of its arrays."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED)):
        _tell_channels(path, module, before["weight"])
    elif isinstance(module, _NORMS_OF_CHANNELS):
        module.num_features = len(next(iter(_own_arrays(module).values())))
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(module.weight)
        if module.num_channels % module.num_groups:
            raise LayoutError(
                f"fit_to: {path} has {module.num_groups} groups, which {module.num_channels} "
                "channels cannot be divided into; prune whole groups"
            )
    elif isinstance(module, nn.RNNBase):
        _tell_units(path, module)
    elif isinstance(module, nn.MultiheadAttention):
        raise LayoutError(
            f"fit_to: {path} is a MultiheadAttention, whose arrays do not say how many heads are "
            "left; use separate dense layers for queries, keys and values"
        )


def _tell_channels(path: str, module: nn.Module, before: Tensor) -> None:
    assert isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED))
    is_transposed = isinstance(module, _TRANSPOSED)
    outer, inner = module.weight.shape[:2]
    if module.groups > 1 and before.shape[1] == inner == 1:
        # One filter or so for each channel: the groups go with the channels.
        module.groups = module.groups * outer // before.shape[0]
    if outer % module.groups:
        raise LayoutError(
            f"fit_to: {path} has {module.groups} groups, which {outer} channels cannot be divided "
            "into; prune whole groups"
        )
    sizes = (outer, inner * module.groups)
    module.in_channels, module.out_channels = sizes if is_transposed else sizes[::-1]


def _tell_units(path: str, module: nn.RNNBase) -> None:
    arrays = _own_arrays(module)
    rows, inputs = arrays["weight_ih_l0"].shape
    units, rest = divmod(rows, _GATES.get(module.mode, 1))
    if rest:
        raise LayoutError(
            f"fit_to: {path} has {rows} rows, which the gates of {module.mode} cannot share; "
            "prune whole units"
        )
    module.input_size, module.hidden_size = inputs, units
    if module.proj_size:
        module.proj_size = len(arrays["weight_hr_l0"])
