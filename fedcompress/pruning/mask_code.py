"""Masks as bytes: which entries of a model are kept, coded as sets of positions.

A coded mask is framed as a payload is (see `fedcompress.wire`), with one section of positions
for each array: checked by magic, version, layout and checksum before anything is read.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedcompress.coders.entropy import Entropy
from fedcompress.errors import PayloadError
from fedcompress.streams import IndexForm, IndexSet
from fedcompress.wire import Section, SectionReader, write_payload

MASK_SPEC = "mask"
_CODER = Entropy()


def encode_mask(mask: Mapping[str, Tensor]) -> bytes:
    """Code which entries are kept.

    Parameters
    ----------
    mask : Mapping[str, Tensor]
        bool, of any shapes.

    Returns
    -------
    bytes
        About the entropy of the positions, less where rows or columns differ in how many they
        keep, and a header of 16 bytes.
    """
    sections = []
    for x in mask.values():
        kept = torch.nonzero(x.reshape(-1)).reshape(-1)
        stream = IndexSet(kept, x.numel(), tuple(x.shape))
        sections.append(Section(stream.kind, _CODER.encode(stream)))
    return write_payload(sections, MASK_SPEC, _as_masks(mask))


def decode_mask(data: bytes, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a mask back; the bytes are not trusted.

    Parameters
    ----------
    data : bytes
        What `encode_mask` gave.
    like : Mapping[str, Tensor]
        Arrays of the mask's names and shapes, of any dtype; what is allocated is bounded by them.

    Returns
    -------
    dict of str to Tensor
        bool, in the order of ``like``.

    Raises
    ------
    PayloadError
        If the bytes are damaged, or were made for other arrays.
    """
    reader = SectionReader(data, MASK_SPEC, _as_masks(like))
    masks = read_masks(reader, like)
    reader.finish()
    return masks


def read_masks(reader: SectionReader, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read the sections of a coded mask; see `decode_mask`."""
    masks = {}
    for name, x in like.items():
        form = IndexForm(x.numel(), tuple(x.shape))
        stream = _CODER.decode(reader.take(form.kind), form)
        assert isinstance(stream, IndexSet)
        kept = stream.indices
        if kept.numel() and not 0 <= int(kept.min()) <= int(kept.max()) < x.numel():
            raise PayloadError(
                f"mask: positions of {name!r} lie beyond its {x.numel()}; the bytes are damaged"
            )
        masks[name] = torch.zeros(x.numel(), dtype=torch.bool)
        masks[name][kept] = True
        masks[name] = masks[name].reshape(x.shape)
    return masks


def _as_masks(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give arrays of the layout that is fingerprinted, without memory."""
    return {
        name: torch.empty(x.shape, dtype=torch.bool, device="meta") for name, x in arrays.items()
    }
