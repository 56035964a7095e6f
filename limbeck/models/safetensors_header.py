"""The heads of safetensors files, and the index that names them, read with suspicion before anything else opens them.

An index is a list of file names, and a head a list of sizes: both are a stranger's word. Names stay in the folder,
sizes are compared with the file's own, and both are read within bounds of memory and time.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

from limbeck.errors import TeacherError

if TYPE_CHECKING:
    from pathlib import Path

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NAMED = "transformers_weights"
"""A key of config.json that names another file of weights, or another index."""

LARGEST_HEAD, LARGEST_INDEX, LARGEST_CONFIG = 32 * 2**20, 64 * 2**20, 8 * 2**20
MOST_TENSORS, MOST_DIMS, MOST_FILES = 300_000, 16, 2000
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), 8),
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}
POINTER = b"version https://git-lfs"
ADVICE = "Copy it anew, whole; a stranger's file may be crafted."

Shapes = dict[str, tuple[int, ...]]
"""Shapes by tensor."""


class _BadFile(Exception):
    """What is wrong with a file, as the end of a sentence."""


def weight_files(folder: Path, config: dict[str, Any]) -> list[Path]:
    """The files of weights that transformers would read in a folder; [] where there are none. Raises TeacherError for
    an index that cannot be read, and for a name, in it or in the config, that is none of a file in the folder itself.
    """
    named = config.get(NAMED)
    try:
        if named is not None:
            file = _beside(folder, named)
            return [file] if not named.endswith(".index.json") else _indexed(file)
        if (folder / SINGLE).is_file():
            return [folder / SINGLE]
        return _indexed(folder / INDEX) if (folder / INDEX).is_file() else []
    except _BadFile as error:
        raise TeacherError(f"{folder} is not opened: {error}. {ADVICE}") from error


def read_shapes(file: Path) -> Shapes:
    """Every tensor of a file, from its head. Raises TeacherError, naming the file, when it is no safetensors file, is
    damaged or cut short, says other sizes than it has, or goes beyond the bounds."""
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            first = handle.read(8)
            length = int.from_bytes(first, "little")
            if first == POINTER[:8]:
                raise _BadFile("it is a pointer of git-lfs, not the weights: run `git lfs pull`")
            if len(first) < 8 or not 2 <= length <= min(LARGEST_HEAD, size - 8):
                raise _BadFile(f"it has {size} bytes, and its head claims {length}; a head has at most {LARGEST_HEAD}")
            text = handle.read(length)
        return _shapes(_parse(text), size - 8 - length)
    except OSError as error:
        raise TeacherError(f"{file} cannot be read ({error.strerror}). Is the path right?") from error
    except _BadFile as error:
        raise TeacherError(f"{file} is not opened: {error}. {ADVICE}") from error


def _shapes(head: Any, num_bytes: int) -> Shapes:
    if not isinstance(head, dict) or len(head) > MOST_TENSORS:
        raise _BadFile(f"its head is no list of tensors, or one of more than {MOST_TENSORS}")
    found, ends, total = {}, 0, 0
    for name, entry in head.items():
        if name == "__metadata__":
            continue
        shape, begin, end = _entry(name, entry)
        found[name], ends, total = shape, max(ends, end), total + end - begin
    if not ends == total == num_bytes:
        raise _BadFile(f"its tensors take {total} bytes and end at {ends}; it has {num_bytes}")
    return found


def _entry(name: str, entry: Any) -> tuple[tuple[int, ...], int, int]:
    entry = entry if isinstance(entry, dict) else {}
    shape, place, dtype = entry.get("shape"), entry.get("data_offsets"), entry.get("dtype")
    whole = _numbers(shape) and _numbers(place) and len(place) == 2 and len(shape) <= MOST_DIMS
    if not whole or not isinstance(dtype, str) or dtype not in BITS:
        raise _BadFile(f"its tensor {name[:80]!r} has no shape, place or type that is known")
    begin, end = place
    if end - begin != -(-math.prod(shape) * BITS[dtype] // 8):
        raise _BadFile(f"its tensor {name[:80]!r} has {end - begin} bytes, and its shape {shape} says others")
    return tuple(shape), begin, end


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 2**63 for each in value)


def _indexed(file: Path) -> list[Path]:
    if not file.is_file() or file.stat().st_size > LARGEST_INDEX:
        raise _BadFile(f"{file.name} is not there, or has more than {LARGEST_INDEX} bytes")
    found = _parse(file.read_bytes())
    names = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise _BadFile(f"{file.name} has no weight_map of tensors and files")
    files = sorted(set(names.values()))
    if len(files) > MOST_FILES:
        raise _BadFile(f"{file.name} names {len(files)} files; at most {MOST_FILES} are read")
    return [_beside(file.parent, name) for name in files]


def _beside(folder: Path, name: Any) -> Path:
    """The file of this name in the folder."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,250}\.safetensors(\.index\.json)?", name):
        raise _BadFile(f"weights would be read from {str(name)[:120]!r}; allowed are files beside config.json")
    if not (folder / name).is_file():
        raise _BadFile(f"{name} is named, and is not there")
    return folder / name


def read_json(file: Path, most: int) -> dict[str, Any]:
    """The object in a file of JSON. Raises TeacherError, naming the file, for what is none, nests too deep, or has more
    than `most` bytes."""
    try:
        if file.stat().st_size > most:
            raise _BadFile(f"it has {file.stat().st_size} bytes; at most {most} are read")
        found = _parse(file.read_bytes())
        if not isinstance(found, dict):
            raise _BadFile("it is no JSON object")
    except OSError as error:
        raise TeacherError(f"{file} cannot be read ({error.strerror}). Is the path right?") from error
    except _BadFile as error:
        raise TeacherError(f"{file} is not opened: {error}. {ADVICE}") from error
    return found


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _BadFile(f"it is not readable JSON ({str(error)[:120]})") from error
