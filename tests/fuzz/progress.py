"""What a process that decodes hostile payloads is at, kept where it outlives the process."""

from __future__ import annotations

import json
import mmap
import struct
from pathlib import Path

_HEAD = struct.Struct("<QQII")  # number, findings, bytes of the spec's text, bytes of the payload


class Progress:
    """A file in memory: the number of the payload, what it belongs to, and its bytes."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def note(self, number: int, findings: int, spec: str, payload: bytes) -> None:
        """Note what is decoded next."""
        text = spec.encode()
        head = _HEAD.pack(number, findings, len(text), len(payload))
        whole = head + text + payload
        self._map[: len(whole)] = whole

    def read(self) -> tuple[int, int, str, bytes]:
        """Give what was noted last."""
        number, findings, text, size = _HEAD.unpack(self._map[: _HEAD.size])
        end = _HEAD.size + text
        return number, findings, self._map[_HEAD.size : end].decode(), self._map[end : end + size]

    def stamp(self) -> bytes:
        """Give bytes that change with every payload."""
        return bytes(self._map[: _HEAD.size])


def write_finding(path: Path, spec: str, payload: bytes, fault: str) -> None:
    """Write a payload and what it did; ``spec`` names the update behind a line feed."""
    spec, _, update = spec.partition("\n")
    text = {"fault": fault, "spec": spec, "update": update, "payload": payload.hex()}
    path.write_text(json.dumps(text, indent=1) + "\n")
