"""JSON that says itself whether it is as it was written: the last member of an object is the CRC-32 of all before it.

    {"step": 3, "loss": 1.25, "crc": "0a1b2c3d"}

Whole files and single lines are sealed alike. What an earlier version wrote has no such member, and is taken as it is.
This is the one reader of JSON that Limbeck wrote: damage is an error with a sentence, whatever it looks like.
"""

from __future__ import annotations

import json
import logging
import re
import zlib
from typing import TYPE_CHECKING, Any, TypeVar

from limbeck.errors import StoreError
from limbeck.system.atomic import atomic_write, verify_dir
from limbeck.system.jsonl import json_line, json_text, whole_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

T = TypeVar("T")

REMADE = "Run the same `limbeck run` again: what is damaged is made anew."
CRC = "crc"
MEMBER = re.compile(rb',?\s*"crc":\s*"([0-9a-f]{8})"\s*\}\s*\Z')


def seal(text: bytes) -> bytes:
    """The text of a JSON object with its checksum as the last member."""
    body = text.rstrip()[:-1].rstrip()
    comma, space = b"" if body == b"{" else b",", b"\n " if b"\n" in body else b" "
    return b'%s%s%s"%s": "%08x"%s}' % (body, comma, space, CRC.encode(), zlib.crc32(body), space.strip(b" "))


def unseal(text: bytes) -> Any:
    """The value of a text, without its checksum. Raises ValueError when it is no JSON, or not as it was written."""
    found = MEMBER.search(text)
    if found:
        body = text[: found.start()]
        if zlib.crc32(body) != int(found[1], 16):
            raise ValueError("its checksum is another")
        text = body + b"}"
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if isinstance(value, dict) and CRC in value:
        raise ValueError("its checksum cannot be read")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Raises BudgetError when the disk is full."""
    atomic_write(path, seal(json_text(value, indent=1)) + b"\n")


def read_json(path: Path, advice: str, kind: type[T] = dict) -> T:
    """What is in a file of Limbeck's own, which says itself whether it is whole, or whose folder has a manifest. Raises
    StoreError when it is damaged or holds another kind of value: it names the file, and gives `advice`."""
    if problem := listed_wrong(path):
        raise StoreError(f"{problem}. {advice}")
    try:
        value = unseal(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is damaged ({error}). {advice}") from error
    if not isinstance(value, kind):
        raise StoreError(f"{path} is damaged (it holds a {type(value).__name__}, not a {kind.__name__}). {advice}")
    return value


def listed_wrong(file: Path) -> str | None:
    """What is wrong with a file by the manifest of its folder, as a sentence; None where there is no manifest."""
    folder = file.parent
    listed = file.name != "MANIFEST.json" and (folder / "MANIFEST.json").exists()
    return verify_dir(folder, only=(file.name,)) if listed else None


def read_json_or(path: Path, default: T) -> T:
    """As `read_json`, for what is made anew where it is missing or damaged: `default` then."""
    if not path.exists():
        return default
    try:
        return read_json(path, "It is made again.", type(default))
    except StoreError as error:
        logger.info("%s", error)
        return default


COMMENT = re.compile(rb"# crc: ([0-9a-f]{8})\n?\Z")


def seal_yaml(text: str) -> str:
    """YAML with its checksum as a comment in the last line."""
    return f"{text}# crc: {zlib.crc32(text.encode()):08x}\n"


def yaml_wrong(file: Path) -> str | None:
    """A sentence when a file is not the YAML that was sealed; None for one that says nothing of it."""
    text = file.read_bytes()
    found = COMMENT.search(text)
    if found is None or zlib.crc32(text[: found.start()]) == int(found[1], 16):
        return None
    return f"{file} is damaged, or was changed since Limbeck wrote it. Run the recipe again: it is written anew."


def sealed_line(value: dict[str, Any]) -> bytes:
    return seal(json_line(value)) + b"\n"


def read_sealed(path: Path) -> Iterator[tuple[int, Any]]:
    """The values of all whole lines with their numbers, from 1; None for a line that is damaged. Half a line at the
    end, which is what a kill leaves, is passed over. No lines where there is no file."""
    for number, line in enumerate(sealed_lines(path) if path.exists() else (), 1):
        value = line_value(line)
        if value is None:
            logger.info("%s: line %d is damaged", path, number)
        yield number, value


def sealed_lines(path: Path, longest: int = -1) -> Iterator[bytes]:
    """Every whole line, as `whole_lines`. A last line that is sealed is whole, too, when only its newline is damaged: a
    kill leaves less of it. Raises OSError."""
    end = 0
    for offset, line in whole_lines(path, longest):
        yield line
        end = offset + len(line)
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(longest)[:-1]
    if MEMBER.search(rest):
        yield rest


def line_value(line: bytes) -> Any:
    """The value of a line, None where it is damaged."""
    try:
        return unseal(line)
    except ValueError:
        return None
