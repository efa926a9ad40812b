"""General-purpose lossless compression of every stream."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedcompress.coder import Coder
from fedcompress.coders.exact import decode_exact, encode_exact
from fedcompress.coders.pack import Pack
from fedcompress.coders.raw import decode_plain, encode_plain
from fedcompress.errors import PayloadError
from fedcompress.streams import (
    FloatForm,
    Floats,
    Form,
    IndexForm,
    IndexSet,
    Layout,
    Stream,
    SymbolForm,
    Symbols,
)

_WIDTHS = (torch.int8, torch.int16, torch.int32)
_HOST = torch.device("cpu")


@dataclass(frozen=True, repr=False)
class Lossless(Coder):
    """Zstandard over bytes sorted by significance: exact, for what must not change."""

    name: ClassVar[str] = "lossless"

    def encode(self, stream: Stream) -> bytes:
        """Code one stream."""
        match stream:
            case Symbols(values):
                low, high = torch.aminmax(values) if values.numel() else (0, 0)
                code = next(
                    i
                    for i, dtype in enumerate(_WIDTHS)
                    if torch.iinfo(dtype).min <= int(low) and int(high) <= torch.iinfo(dtype).max
                )
                return bytes((code,)) + encode_exact(values.to(_WIDTHS[code]))
            case Floats(values):
                return encode_exact(values)
            case IndexSet():
                return Pack().encode(stream)
            case _:
                return encode_plain(stream)

    def decode(self, data: memoryview, form: Form) -> Stream:
        """Read one stream back."""
        match form:
            case SymbolForm(shape):
                if len(data) == 0 or data[0] >= len(_WIDTHS):
                    raise PayloadError("payload: symbols of no known width; it is damaged")
                narrow = decode_exact(data[1:], Layout(shape, _WIDTHS[data[0]], _HOST))
                return Symbols(narrow.to(torch.int32))
            case FloatForm(shape, dtype):
                return Floats(decode_exact(data, Layout(shape, dtype, _HOST)))
            case IndexForm():
                return Pack().decode(data, form)
            case _:
                return decode_plain(data, form)
