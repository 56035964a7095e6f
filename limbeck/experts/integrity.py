"""Whether a folder is an expert as it was written, and nothing else: plain files in plain folders, each as its manifest
says. What others hand out is looked at here before anything of it is opened."""

from __future__ import annotations

import io
import os
import pickletools
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from limbeck.errors import ExpertError, TeacherError
from limbeck.experts.card import MOST_BYTES, parse_json
from limbeck.models.safetensors_header import LARGEST_CONFIG, read_json, weight_files
from limbeck.models.weights import PICKLES
from limbeck.system.atomic import sha256_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MANIFEST = "MANIFEST.json"
NO_WEIGHTS = (*PICKLES, "*.pickle", "*.joblib", "*.pt2", "*.npy", "*.npz")
"""Files that are, or may hold, pickles: opening one can run code."""
PLAIN = (".safetensors", ".gguf", ".onnx", ".onnx_data", ".data")
"""Tensors: their first bytes may look like anything."""

MOST_PICKLE = 2**20
"""Bytes that are followed: no text reads as a pickle for so long."""
CALLS = frozenset({"REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"})
FIRST_OPCODES = frozenset(opcode.code.encode("latin-1") for opcode in pickletools.opcodes)

Stamp = tuple[int, int, int, int, int]
SeenFiles = dict[Path, tuple[Stamp, str]]
"""Hashes of files by what the file system says of them: a file that did not change is not hashed again."""


@dataclass(frozen=True)
class FolderLimits:
    """The most that a folder of others may hold."""

    files: int = 2000
    bytes: int = 256 * 2**30
    depth: int = 6


def safe_name(name: str) -> str:
    """A file's name inside an expert, as a manifest or a hub gives it. Raises ExpertError for an absolute one, one that
    leaves its folder, and one with characters that could steer a terminal or a file system."""
    path = PurePosixPath(name)
    plain = name and name == str(path) and not path.is_absolute() and "\\" not in name and ":" not in name
    if not plain or not name.isprintable() or any(part.startswith(".") for part in path.parts) or len(name) > 500:
        raise ExpertError(
            f"the file name {name[:120]!r} is not allowed in an expert: names are relative, and without hidden parts, "
            "'..', backslash, colon or control characters"
        )
    return name


def read_text(file: Path) -> str:
    """A file that is read whole. Raises ExpertError where it is longer than any of its kind."""
    if file.stat().st_size > MOST_BYTES:
        raise ExpertError(f"{file.name} has {file.stat().st_size} bytes; at most {MOST_BYTES} are read")
    return file.read_text(encoding="utf-8", errors="replace")


def refuse_outside(model: Path) -> None:
    """Raises ExpertError where a model names files of weights that are not its own: in its index, or in its config."""
    try:
        config = read_json(model / "config.json", LARGEST_CONFIG) if (model / "config.json").is_file() else {}
        weight_files(model, config)
    except TeacherError as error:
        raise ExpertError(str(error).replace(f"{model.parent}/", "").rstrip(".")) from error


def read_manifest(text: str) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 by name. Raises ExpertError when it does not say them, or names what is not allowed."""
    manifest = parse_json(text, MANIFEST)
    if not isinstance(manifest, dict) or not all(_is_entry(entry) for entry in manifest.values()):
        raise ExpertError(f"{MANIFEST} does not say size and SHA-256 of every file")
    for name in manifest:
        refuse_file(safe_name(name))
    return manifest


def refuse_excess(sizes: Iterable[int], limits: FolderLimits | None = None) -> None:
    """Raises ExpertError for more files, or more bytes, than an expert may have."""
    limits, sizes = limits or FolderLimits(), list(sizes)
    if len(sizes) > limits.files or sum(sizes) > limits.bytes:
        raise ExpertError(
            f"it has {len(sizes)} files of {sum(sizes) / 2**30:.1f} GiB; at most {limits.files} files of "
            f"{limits.bytes / 2**30:.0f} GiB are allowed"
        )


def names_in(folder: Path, limits: FolderLimits | None = None) -> list[str]:
    """Every file in a folder, as relative names with '/', sorted. Raises ExpertError for links, devices, pickles, names
    that are not allowed, and more than `limits`."""
    limits = limits or FolderLimits()
    found: dict[str, int] = {}
    for name, info in _walk(folder, "", limits):
        refuse_file(safe_name(name))
        _refuse_content(folder / name)
        found[name] = info.st_size
        if len(found) > limits.files:
            break
    refuse_excess(found.values(), limits)
    return sorted(found)


def refuse_file(name: str) -> None:
    """Raises ExpertError for the name of a file that may be a pickle."""
    if any(PurePosixPath(name.lower()).match(pattern) for pattern in NO_WEIGHTS):
        raise ExpertError(f"{name} may be a pickle, and opening one can run code; only safetensors, GGUF and ONNX are")


def _walk(folder: Path, inside: str, limits: FolderLimits) -> Iterator[tuple[str, os.stat_result]]:
    if inside.count("/") >= limits.depth:
        raise ExpertError(f"{inside} lies deeper than {limits.depth} folders")
    with os.scandir(folder / inside) as entries:
        for entry in entries:
            name, info = f"{inside}{entry.name}", entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                yield from _walk(folder, f"{name}/", limits)
            elif stat.S_ISREG(info.st_mode):
                yield name, info
            else:
                what = "a link" if stat.S_ISLNK(info.st_mode) else "neither a file nor a folder"
                raise ExpertError(f"{name!r} is {what}; an expert holds plain files only")


def _refuse_content(file: Path) -> None:
    """Pickles by what they begin with, whatever they are called, and the ZIP that torch.save makes."""
    if file.suffix in PLAIN:
        return
    with file.open("rb") as handle:
        head = handle.read(4)
        if head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and head[1:2] <= b"\x05") or _is_pickle(head, handle):
            raise ExpertError(f"{file.name} begins as a pickle or an archive does; only plain files are allowed")


def _is_pickle(head: bytes, handle: BinaryIO) -> bool:
    """Whether a file is read as a pickle up to its end, or up to where it calls something. Protocols 0 and 1 begin with
    any letter, so instructions are followed without being carried out; text soon asks for what is not on the stack."""
    if head[:1] not in FIRST_OPCODES:
        return False
    text, stack = io.BytesIO(head + handle.read(MOST_PICKLE)), list[bool]()
    try:
        for opcode, _, _ in pickletools.genops(text):
            if not _applies(opcode, stack):
                return False
            if opcode.name in CALLS:
                return True
    except Exception:  # an instruction that is none, an argument that is none: it is something else
        return text.tell() >= MOST_PICKLE
    return True


def _applies(opcode: pickletools.OpcodeInfo, stack: list[bool]) -> bool:
    """Apply an instruction to a stack of which only marks (True) are told apart; False where it cannot be applied."""
    taken = opcode.stack_before
    if pickletools.markobject in taken:
        while stack and not stack[-1]:
            stack.pop()
        taken = [*taken[: taken.index(pickletools.markobject)], pickletools.markobject]
    if len(stack) < len(taken):
        return False
    del stack[len(stack) - len(taken) :]
    stack += [made is pickletools.markobject for made in opcode.stack_after]
    return True


def check_sealed(folder: Path, seen: SeenFiles, limits: FolderLimits | None = None) -> list[str]:
    """The names of a sealed folder's files. Raises ExpertError unless they are exactly those of its manifest, and as
    they were written. `seen` is filled and used."""
    names = names_in(folder, limits)
    if MANIFEST not in names:
        raise ExpertError(f"it has no {MANIFEST}")
    manifest = read_manifest(read_text(folder / MANIFEST))
    for name in manifest:
        if name not in names:
            raise ExpertError(f"{name} is missing")
    for name in names:
        if name != MANIFEST and name not in manifest:
            raise ExpertError(f"{name} is not in its {MANIFEST}")
    for name, entry in manifest.items():
        _check_file(folder / name, name, entry, seen)
    return names


def _is_entry(entry: object) -> bool:
    sound = isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
    return sound and entry["bytes"] >= 0  # type: ignore[index]


def stamp_of(file: Path) -> Stamp:
    info = file.stat()
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _check_file(file: Path, name: str, entry: dict[str, object], seen: SeenFiles) -> None:
    stamp = stamp_of(file)
    if stamp[2] != entry["bytes"]:
        raise ExpertError(f"{name} has {stamp[2]} bytes instead of {entry['bytes']}")
    if file not in seen or seen[file][0] != stamp:
        seen[file] = (stamp, sha256_file(file))
    if seen[file][1] != entry["sha256"]:
        raise ExpertError(f"{name} is damaged (its SHA-256 changed)")
