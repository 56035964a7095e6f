"""How an exchange travels to the recorder: three lengths, what is known of it as JSON, and the two bodies."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

LENGTHS = struct.Struct(">III")


@dataclass(frozen=True)
class Frame:
    meta: dict[str, Any]
    request: bytes
    reply: bytes


def pack(meta: dict[str, Any], request: bytes, reply: bytes) -> bytes:
    head = json.dumps(meta).encode()
    return b"".join((LENGTHS.pack(len(head), len(request), len(reply)), head, request, reply))


def take(buffer: bytearray) -> Iterator[Frame]:
    """The whole frames at the beginning of a buffer, which are taken out of it."""
    at = 0
    while len(buffer) - at >= LENGTHS.size:
        sizes = LENGTHS.unpack_from(buffer, at)
        end = at + LENGTHS.size + sum(sizes)
        if len(buffer) < end:
            break
        first = at + LENGTHS.size
        second = first + sizes[0]
        third = second + sizes[1]
        yield Frame(json.loads(buffer[first:second]), bytes(buffer[second:third]), bytes(buffer[third:end]))
        at = end
    del buffer[:at]
