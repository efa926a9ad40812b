"""The archive: a model in as few bytes as the codecs make of it, and all that reads it back.

====================== ============================================================
bytes                  what
====================== ============================================================
5                      magic ``b"fcarc"``
1                      version, 1
4                      checksum: CRC-32 of the head's bytes, little-endian
varint                 length of the head
as many                the head: JSON in one Zstandard frame
rest                   one payload of `fedcompress.wire`: the arrays
====================== ============================================================
"""

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, final

import torch
import zstandard
from torch import Tensor, nn

from fedcompress import __version__, parse, rng_for
from fedcompress.errors import FedcompressError, LayoutError, PayloadError
from fedcompress.resize import fit_to
from fedcompress.wire import read_varint, write_varint
from simulations.export.levels import restored_arrays
from simulations.models import build_model, load_arrays
from simulations.records import write_whole

MAGIC, VERSION = b"fcarc", 1
MOST_HEAD_BYTES = 64_000
_CHECKSUM_BYTES = 4
_LENGTH_AT = len(MAGIC) + 1 + _CHECKSUM_BYTES
MOST_RATIO = 4096
"""An archive stands for at most so many times its own bytes, so what it claims is bounded."""
_MOST_INPUT = 1 << 24
_MISFITS = (FedcompressError, KeyError, TypeError, ArithmeticError, ValueError, RuntimeError)
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
}


@final
@dataclass(frozen=True)
class Head:
    """What an archive says of its model.

    Attributes
    ----------
    model : mapping
        ``name``, ``hidden`` and ``width`` of what it was built from; layers are as large as the
        arrays are.
    data : mapping
        What inputs it takes: ``name``, ``task``, ``shape``, ``num_classes``, and
        ``pixel_mean``/``pixel_std`` or ``vocabulary``. Class k is the data set's class k.
    spec : str
        The compressor that coded the arrays.
    recipe : mapping
        How the model was made smaller.
    arrays : list of [str, str, list of int]
        Name, dtype and shape of each array that is stored, in order.
    versions : mapping of str to str
        What wrote it.
    """

    model: Mapping[str, Any]
    data: Mapping[str, Any]
    spec: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    arrays: list[list[Any]] = field(default_factory=list)
    versions: Mapping[str, str] = field(default_factory=dict)


def write_archive(stored: Mapping[str, Tensor], head: Head, path: Path) -> int:
    """Write arrays and what they are for, whole or not at all.

    Parameters
    ----------
    stored : mapping of str to Tensor
        From `simulations.export.levels.stored_arrays`.
    head : Head
        Its `arrays` and `versions` are filled in here.
    path : Path
        The file.

    Returns
    -------
    int
        Bytes of the file.

    Raises
    ------
    LayoutError
        If the arrays cannot be told in a head.
    """
    content = archive_bytes(stored, head)
    write_whole(path, content)
    return len(content)


def archive_bytes(stored: Mapping[str, Tensor], head: Head) -> bytes:
    """Give the content of an archive; see `write_archive`."""
    arrays = [[n, str(x.dtype).removeprefix("torch."), list(x.shape)] for n, x in stored.items()]
    versions = {"fedcompress": __version__, "torch": torch.__version__}
    told = asdict(head) | {"arrays": arrays, "versions": versions}
    text = json.dumps(told, separators=(",", ":"), allow_nan=False).encode()
    if len(text) > MOST_HEAD_BYTES:
        raise LayoutError(
            f"archive: its head takes {len(text)} bytes, at most {MOST_HEAD_BYTES} are read; "
            "the model has too many arrays"
        )
    packed = zstandard.ZstdCompressor(level=19).compress(text)
    compressor = parse(head.spec)
    payload, _ = compressor.encode(stored, compressor.init(stored), rng_for(0, purpose="archive"))
    checksum = zlib.crc32(packed).to_bytes(_CHECKSUM_BYTES, "little")
    content = b"".join(
        (MAGIC, bytes((VERSION,)), checksum, write_varint(len(packed)), packed, payload)
    )
    if _dense_bytes(stored) > MOST_RATIO * len(content):
        raise LayoutError(
            f"archive: {_dense_bytes(stored)} bytes of arrays in {len(content)} would not be read; "
            "the model is nearly all zero, prune it less"
        )
    return content


def read_archive(path: Path) -> tuple[dict[str, Tensor], Head]:
    """Read the arrays of an archive, as the model takes them, and its head.

    Raises
    ------
    PayloadError
        If the file is cut short, damaged, of a later version, or claims what it cannot hold.
    OSError
        If there is no such file.
    """
    return read_bytes(path.read_bytes())


def read_bytes(content: bytes) -> tuple[dict[str, Tensor], Head]:
    """Read an archive's content; see `read_archive`. It is not trusted."""
    head, payload = read_head(content)
    like = _layout(head, len(content))
    try:
        stored = parse(head.spec).decode(payload, like)
    except PayloadError as error:
        raise PayloadError(f"archive: {error}") from error
    except FedcompressError as error:
        raise PayloadError(f"archive: its spec {head.spec!r} cannot be read: {error}") from error
    try:
        return restored_arrays(stored), head
    except (RuntimeError, IndexError) as error:
        raise PayloadError("archive: levels and scales do not fit; it is damaged") from error


def read_head(content: bytes) -> tuple[Head, bytes]:
    """Read the head of an archive; give it and the payload behind it.

    Raises
    ------
    PayloadError
        If it is not an archive, or its head is damaged.
    """
    if content[: len(MAGIC)] != MAGIC:
        raise PayloadError(
            f"archive: begins with {content[: len(MAGIC)]!r}, not {MAGIC!r}; this is no archive, "
            "or it was cut short"
        )
    if content[len(MAGIC) : len(MAGIC) + 1] != bytes((VERSION,)):
        raise PayloadError(
            f"archive: version {list(content[len(MAGIC) : len(MAGIC) + 1])}, this reads "
            f"{VERSION}; install a later fedcompress"
        )
    view = memoryview(content)
    length, start = read_varint(view, _LENGTH_AT)
    if length > len(content) - start:
        raise PayloadError(
            f"archive: a head of {length} bytes does not fit in the {len(content) - start} that "
            "are left; it was cut short"
        )
    packed = view[start : start + length]
    if zlib.crc32(packed) != int.from_bytes(view[len(MAGIC) + 1 : _LENGTH_AT], "little"):
        raise PayloadError("archive: the checksum of its head does not match; it is damaged")
    return _read_head(packed), bytes(view[start + length :])


def _read_head(packed: memoryview) -> Head:
    try:
        size = zstandard.get_frame_parameters(packed).content_size
        if not 0 < size <= MOST_HEAD_BYTES:
            raise PayloadError(f"archive: a head of {size} bytes; it is damaged")
        text = zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
        values = json.loads(text)
    except (zstandard.ZstdError, ValueError, RecursionError) as error:
        if isinstance(error, PayloadError):
            raise
        raise PayloadError(f"archive: its head cannot be read ({error}); it is damaged") from error
    names = {each.name for each in fields(Head)}
    # A later version may say more; what this one needs must be there.
    if not isinstance(values, dict) or not names <= values.keys():
        raise PayloadError(f"archive: its head lacks one of {', '.join(sorted(names))}")
    head = Head(**{name: values[name] for name in names})
    if type(values["spec"]) is not str or type(values["arrays"]) is not list:
        raise PayloadError("archive: its head says no spec or no arrays; it is damaged")
    return head


def _layout(head: Head, file_bytes: int) -> dict[str, Tensor]:
    """Give arrays of the layout that the head claims, once it is known to be bounded."""
    room = MOST_RATIO * file_bytes
    shapes: dict[str, tuple[list[int], torch.dtype]] = {}
    for entry in head.arrays:
        match entry:
            case [str(name), str(dtype), list(shape)] if (
                dtype in _DTYPES
                and name not in shapes
                and len(shape) <= 8
                and all(type(size) is int and 0 <= size < 1 << 40 for size in shape)
            ):
                shapes[name] = shape, _DTYPES[dtype]
            case _:
                raise PayloadError(f"archive: {str(entry)[:80]} is no array; it is damaged")
        count = _DTYPES[dtype].itemsize
        for size in shape:
            # An empty array is still bounded: torch multiplies its sizes, too.
            count *= max(size, 1)
        room -= count
        if room < 0:
            raise PayloadError(
                f"archive: claims more than {MOST_RATIO} times its {file_bytes} bytes; "
                "it is damaged"
            )
    return {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}


def load_archive(path: Path) -> nn.Module:
    """Read an archive as a model, on the CPU, in evaluation mode.

    Raises
    ------
    PayloadError
        If the archive cannot be read, or its arrays are not those of its model.
    OSError
        If there is no such file.
    """
    return model_of(*read_archive(path))


def model_of(arrays: Mapping[str, Tensor], head: Head) -> nn.Module:
    """Build the model that a head names, and put the arrays into it; see `load_archive`."""
    try:
        model = _built(arrays, head)
        load_arrays(model, arrays)
    except _MISFITS as error:
        raise PayloadError(
            f"archive: its arrays are not those of the model it names ({error}); it is damaged"
        ) from error
    return model.eval()


def _built(arrays: Mapping[str, Tensor], head: Head) -> nn.Module:
    """Build a model as large as the arrays; nothing is allocated before it is known to fit."""
    shape = tuple(int(size) for size in head.data["shape"])
    classes = int(head.data["num_classes"])
    if min((*shape, classes)) < 1 or math.prod(shape) > _MOST_INPUT:
        raise LayoutError(f"inputs of shape {shape} and {classes} classes")
    with torch.device("meta"):
        model = build_model(
            str(head.model["name"]),
            shape,
            classes,
            seed=0,
            hidden=[int(size) for size in head.model["hidden"]],
            width=float(head.model["width"]),
        )
        shapes = {name: tuple(x.shape) for name, x in arrays.items()}
        model = fit_to(model, shapes).to("meta").eval()
        dtype = torch.float32 if len(shape) > 1 else torch.int64
        given = model(torch.empty(2, *shape, dtype=dtype)).shape
    if given != (2, classes):
        raise LayoutError(f"it gives logits of shape {tuple(given)} for {classes} classes")
    return model.to_empty(device="cpu")


def _dense_bytes(arrays: Mapping[str, Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in arrays.values())
