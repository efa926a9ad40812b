"""Masks as bytes: which entries of a model are kept, coded as sets of positions.

A coded mask is framed as a payload is (see `fedcompress.wire`), with one section of positions
for each array: checked by magic, version, layout and checksum before anything is read.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedcompress.coders.index_sets import decode_index_set, encode_index_set
from fedcompress.errors import PayloadError
from fedcompress.wire import Section, SectionReader, write_payload

_SPEC = "mask"


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
        kept = np.flatnonzero(x.cpu().numpy())
        sections.append(Section("index", encode_index_set(kept, x.numel(), tuple(x.shape))))
    return write_payload(sections, _SPEC, _as_masks(mask))


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
    reader = SectionReader(data, _SPEC, _as_masks(like))
    masks = {}
    for name, x in like.items():
        kept = decode_index_set(reader.take("index"), x.numel(), tuple(x.shape))
        if kept.size and not 0 <= int(kept[0]) <= int(kept[-1]) < x.numel():
            raise PayloadError(
                f"mask: positions of {name!r} lie beyond its {x.numel()}; the bytes are damaged"
            )
        flat = np.zeros(x.numel(), np.bool_)
        flat[kept] = True
        masks[name] = torch.from_numpy(flat.reshape(tuple(x.shape)))
    reader.finish()
    return masks


def _as_masks(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give arrays of the layout that is fingerprinted, without memory."""
    return {
        name: torch.empty(x.shape, dtype=torch.bool, device="meta") for name, x in arrays.items()
    }
