"""The head of a GGUF file, read with suspicion before anything else opens the file.

Crafted files have crashed every parser of this format. So counts, lengths, types and offsets are checked here against
the format and the size of the file, within bounds of memory and time. That makes accidents harmless and attacks harder;
it does not make llama.cpp safe: files of strangers belong into a process of their own.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from limbeck.errors import TeacherError

if TYPE_CHECKING:
    from pathlib import Path

MAGIC, VERSIONS = b"GGUF", (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
BLOCKS = {
    **{0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34)},
    **{10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210)},
    **{16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82)},
    **{23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2)},
    **{34: (256, 54), 35: (256, 66), 39: (32, 17)},
}
"""Elements and bytes of a block, by ggml's number of the type: those that stand in files."""

MOST_KEYS, MOST_TENSORS, MOST_ITEMS = 10_000, 100_000, 4_000_000
MOST_TEXT = 64 * 2**20
"""Bytes of all strings together that are kept. Items are counted over all arrays: a vocabulary of 260,000 tokens has a
million, with merges and kinds."""
LONGEST_KEY, LONGEST_STRING, LONGEST_NAME, MOST_DIMS = 65_535, 16 * 2**20, 64, 4
SAMPLES, SAMPLE_BYTES = 256, 64


@dataclass(frozen=True)
class Header:
    """`values` are the single values and strings of the metadata; arrays stand as their lengths. `shapes` are those of
    the tensors, by name; `end` is where they begin."""

    values: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    end: int

    @property
    def arch(self) -> str:
        return str(self.values.get("general.architecture", ""))

    def of_arch(self, key: str) -> Any:
        """A value of the architecture, such as "context_length"; None where it is not given."""
        return self.values.get(f"{self.arch}.{key}")


class _Wrong(Exception):
    """What is wrong with a file, as the end of a sentence."""


def read_header(file: Path) -> Header:
    """Read and check the head of a file. Raises TeacherError, naming the file, when it is no GGUF file, damaged, cut
    short, or beyond the bounds."""
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            return _Reader(handle, size).read()
    except OSError as error:
        raise TeacherError(f"{file} cannot be read ({error.strerror}). Is the path right?") from error
    except _Wrong as error:
        raise TeacherError(
            f"{file} is not opened: {error}. Export it again, or copy it anew; a stranger's file may be crafted."
        ) from error


def file_fingerprint(file: Path, header: Header) -> str:
    """16 hex digits over the head of a file, its size, and samples spread over its tensors."""
    digest, size = hashlib.sha256(), file.stat().st_size
    with file.open("rb") as handle:
        left = header.end
        while left > 0 and (part := handle.read(min(left, 2**20))):
            digest.update(part)
            left -= len(part)
        for index in range(SAMPLES):
            handle.seek(header.end + (size - header.end) * index // SAMPLES)
            digest.update(handle.read(SAMPLE_BYTES))
    digest.update(str(size).encode())
    return digest.hexdigest()[:16]


class _Reader:
    def __init__(self, handle: BinaryIO, size: int) -> None:
        self.handle, self.size = handle, size
        self.items_left, self.text_left = MOST_ITEMS, MOST_TEXT

    def read(self) -> Header:
        if self.handle.read(4) != MAGIC:
            raise _Wrong("it does not begin with `GGUF`")
        version = self.one("I")
        if version not in VERSIONS:
            raise _Wrong(f"its version is {version}; allowed are 2 and 3")
        num_tensors, num_keys = self.one("Q"), self.one("Q")
        if num_keys > MOST_KEYS or num_tensors > MOST_TENSORS:
            raise _Wrong(f"it claims {num_keys} keys and {num_tensors} tensors")
        values: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self.string(LONGEST_KEY)
            if key in values:
                raise _Wrong(f"its key {key!r} is there twice")
            values[key] = self.value(self.one("I"))
        last, shapes = 0, {}
        alignment = self.alignment(values)
        for _ in range(num_tensors):
            name, dims, end = self.tensor(alignment)
            last, shapes[name] = max(last, end), dims
        if len(shapes) != num_tensors:
            raise _Wrong("two of its tensors have the same name")
        start = -(-self.handle.tell() // alignment) * alignment
        if start + last > self.size:
            raise _Wrong(f"it has {self.size} bytes, and its tensors end at {start + last}: it was cut short")
        return Header(values, shapes, start)

    def alignment(self, values: dict[str, Any]) -> int:
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**16 or alignment & (alignment - 1):
            raise _Wrong(f"its alignment is {alignment!r}, not a power of two")
        return alignment

    def tensor(self, alignment: int) -> tuple[str, tuple[int, ...], int]:
        """Name and shape of the next tensor, and where it ends behind the head."""
        name = self.string(LONGEST_NAME)
        num_dims = self.one("I")
        if num_dims > MOST_DIMS:
            raise _Wrong(f"the tensor {name!r} has {num_dims} dimensions")
        dims = [self.one("Q") for _ in range(num_dims)]
        kind, offset = self.one("I"), self.one("Q")
        if kind not in BLOCKS:
            raise _Wrong(f"the tensor {name!r} is of the unknown type {kind}")
        block, num_bytes = BLOCKS[kind]
        if 0 in dims or (dims and dims[0] % block):
            raise _Wrong(f"the tensor {name!r} has the shape {dims}, which its type does not allow")
        if offset % alignment:
            raise _Wrong(f"the tensor {name!r} begins at {offset}, which is not aligned")
        return name, tuple(dims), offset + math.prod(dims) // block * num_bytes

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.one(SCALARS[kind])
        if kind == STRING:
            return self.string(LONGEST_STRING)
        if kind != ARRAY:
            raise _Wrong(f"its metadata has a value of the unknown type {kind}")
        inner, length = self.one("I"), self.one("Q")
        self.items_left -= length
        if self.items_left < 0:
            raise _Wrong(f"its metadata has an array of {length} items; {MOST_ITEMS} are allowed in all")
        if inner in SCALARS:
            self.skip(length * struct.calcsize(f"<{SCALARS[inner]}"))
        elif inner == STRING:
            for _ in range(length):
                self.skip(self.one("Q"))
        else:
            raise _Wrong(f"its metadata has an array of items of the type {inner}")
        return length

    def one(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.bytes(struct.calcsize(f"<{code}")))[0]

    def string(self, longest: int) -> str:
        length = self.one("Q")
        if length > longest:
            raise _Wrong(f"it has a string of {length} bytes where {longest} are allowed")
        self.text_left -= length
        if self.text_left < 0:
            raise _Wrong(f"its strings have more than {MOST_TEXT} bytes together")
        return self.bytes(length).decode("utf-8", errors="replace")

    def bytes(self, count: int) -> bytes:
        data = self.handle.read(count)
        if len(data) != count:
            raise _Wrong("it ends within its head: it was cut short")
        return data

    def skip(self, count: int) -> None:
        if self.handle.tell() + count > self.size:
            raise _Wrong("it ends within its head: it was cut short")
        self.handle.seek(count, 1)
