from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import TeacherError
from limbeck.models.gguf_header import BLOCKS, file_fingerprint, read_header

if TYPE_CHECKING:
    from pathlib import Path


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf(
    pairs: list[bytes], tensors: list[bytes], data: int, *, version: int = 3, counts: tuple[int, int] | None = None
):
    num_tensors, num_pairs = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_pairs) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


ARCH = pair("general.architecture", 8, text("llama"))
CONTEXT = pair("llama.context_length", 4, struct.pack("<I", 128))
NAMES = pair("names", 9, struct.pack("<IQ", 8, 2) + text("a") + text("bc"))
NUMBERS = pair("numbers", 9, struct.pack("<IQ", 5, 3) + struct.pack("<3i", 1, 2, 3))
WHOLE = gguf([ARCH, CONTEXT, NAMES, NUMBERS], [tensor("a.weight", [32, 2], 8), tensor("b", [4], 0, 96)], 112)


def test_values_are_read_and_arrays_counted(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(WHOLE)
    header = read_header(file)
    assert (header.arch, header.of_arch("context_length"), header.of_arch("nothing")) == ("llama", 128, None)
    assert (header.values["names"], header.values["numbers"], len(header.shapes)) == (2, 3, 2)
    assert len(WHOLE) == header.end + 112


def test_block_sizes_are_those_of_the_format() -> None:
    sizes = pytest.importorskip("gguf").GGML_QUANT_SIZES
    for kind, size in BLOCKS.items():
        assert sizes[kind] == size
    assert {kind.name for kind in sizes if kind not in BLOCKS} <= {"Q8_1", "Q8_K", "NVFP4", "Q1_0"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin with `GGUF`"),
        (b"PK\x03\x04" + WHOLE, "does not begin with `GGUF`"),
        (WHOLE[:60], "ends within its head"),
        (WHOLE[:-40], "its tensors end at .*: it was cut short"),
        (gguf([], [], 0, version=1), "its version is 1; allowed are 2 and 3"),
        (gguf([], [], 0, version=0x03000000), "its version is 50331648"),  # the other byte order
        (gguf([], [], 0, counts=(2**60, 1)), "it claims 1 keys and 1152921504606846976 tensors"),
        (gguf([], [], 0, counts=(0, 2**60)), "it claims 1152921504606846976 keys"),
        (gguf([struct.pack("<Q", 2**62)], [], 0), "a string of 4611686018427387904 bytes where 65535 are allowed"),
        (gguf([pair("a", 8, struct.pack("<Q", 2**40))], [], 0), "a string of 1099511627776 bytes"),
        (gguf([pair("a", 8, struct.pack("<Q", 2**20))], [], 0), "ends within its head"),
        (gguf([pair("a", 13, b"")], [], 0), "a value of the unknown type 13"),
        (gguf([pair("a", 9, struct.pack("<IQ", 9, 1))], [], 0), "an array of items of the type 9"),
        (gguf([pair("a", 9, struct.pack("<IQ", 4, 2**50))], [], 0), "an array of 1125899906842624 items"),
        (gguf([pair("a", 9, struct.pack("<IQ", 4, 3_000_000))], [], 0), "ends within its head"),
        (gguf([pair(name, 9, struct.pack("<IQ", 7, 3_000_000)) + bytes(3_000_000) for name in "ab"], [], 0), "in all"),
        (gguf([pair("a", 9, struct.pack("<IQQ", 8, 2, 2**63))], [], 0), "ends within its head"),
        (gguf([ARCH, ARCH], [], 0), "its key 'general.architecture' is there twice"),
        (gguf([pair("general.alignment", 4, struct.pack("<I", 0))], [], 0), "its alignment is 0"),
        (gguf([pair("general.alignment", 4, struct.pack("<I", 48))], [], 0), "its alignment is 48"),
        (gguf([pair("general.alignment", 8, text("x"))], [], 0), "its alignment is 'x'"),
        (gguf([], [tensor("a", [2**62, 4])], 0), "its tensors end at"),
        (gguf([], [tensor("a", [1] * 9)], 0), "has 9 dimensions"),
        (gguf([], [tensor("a", [4], 99)], 0), "is of the unknown type 99"),
        (gguf([], [tensor("a", [33, 1], 8)], 64), "has the shape \\[33, 1\\], which its type does not allow"),
        (gguf([], [tensor("a", [0, 4])], 0), "has the shape \\[0, 4\\]"),
        (gguf([], [tensor("a", [4], 0, 7)], 64), "begins at 7, which is not aligned"),
        (gguf([], [tensor("a", [4]), tensor("a", [4])], 64), "two of its tensors have the same name"),
        (gguf([], [tensor("a" * 99, [4])], 64), "a string of 99 bytes where 64 are allowed"),
    ],
)
def test_crafted_and_damaged_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    with pytest.raises(TeacherError, match=f"bad.gguf is not opened: .*{message}"):
        read_header(file)


@given(at=st.integers(0, len(WHOLE) - 113), value=st.integers(0, 255), cut=st.integers(0, len(WHOLE)))
def test_any_damage_is_an_error_of_ours_or_none(
    at: int, value: int, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "damaged.gguf"
    for content in (WHOLE[:at] + bytes([value]) + WHOLE[at + 1 :], WHOLE[:cut]):
        file.write_bytes(content)
        try:
            read_header(file)
        except TeacherError:
            continue
        assert len(content) == len(WHOLE)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="cannot be read .No such file"):
        read_header(tmp_path / "none.gguf")


def test_fingerprint_sees_head_and_weights(tmp_path: Path) -> None:
    file, prints = tmp_path / "a.gguf", set()
    for content in (WHOLE, WHOLE[:-1] + b"x", WHOLE.replace(b"llama", b"lama2"), WHOLE + b"more"):
        file.write_bytes(content)
        prints.add(file_fingerprint(file, read_header(file)))
        assert file_fingerprint(file, read_header(file)) in prints
    assert len(prints) == 4
