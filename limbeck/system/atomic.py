"""Files that appear whole or not at all: fingerprints, atomic writes, folders sealed by a manifest."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from limbeck.system.refusals import disk_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

logger = logging.getLogger(__name__)

UNSYNCED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EISDIR)
"""What file systems say that cannot fsync a folder; Windows and folders that may not be read say EACCES."""


def fingerprint(*parts: Any) -> str:
    """16 hex digits over JSON-able parts; the same on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_dir(path: Path) -> None:
    """Bring the names in a folder to the disk, where its file system can: some network and FUSE ones refuse to open or
    fsync a folder, and have nothing better to offer. Raises OSError where the disk itself fails."""
    try:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed over it, on failure removed.

    Raises BudgetError when the disk is full, naming what is free; RunDirError when it refuses.
    """
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield tmp
            with tmp.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(tmp, path)
            fsync_dir(path.parent)
        finally:
            with contextlib.suppress(OSError):  # it would hide what went wrong
                tmp.unlink(missing_ok=True)


def atomic_write(path: Path, data: str | bytes) -> None:
    with atomic_path(path) as tmp:
        tmp.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success every file is fsynced, MANIFEST.json (sizes, SHA-256) is written last, and
    the folder is renamed to `path`, replacing an older one. On failure or kill nothing under the final name changes."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        tmp = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield tmp
            seal_dir(tmp)
            tmp.chmod(0o755)
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
                os.rename(path, old / "replaced")
                os.rename(tmp, path)
                shutil.rmtree(old, ignore_errors=True)  # what stays is swept by the next writer
            else:
                os.rename(tmp, path)
            fsync_dir(path.parent)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)


def seal_dir(folder: Path) -> None:
    """Write MANIFEST.json, the size and SHA-256 of every file by its relative name, and bring all of it to the disk."""
    own = folder / "MANIFEST.json"
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != own)
    manifest = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in files
    }
    own.write_text(json.dumps(manifest, indent=1))
    for file in [*files, own]:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    for inside in sorted(path for path in folder.rglob("*") if path.is_dir()):
        fsync_dir(inside)


LEFT_BEHIND = re.compile(r"\.(.+)\.[0-9a-z_]+\.(tmp|old)")
"""How `atomic_path` and `atomic_dir` name what is not finished: the name that it would have had is the first group."""


def sweep_all(folder: Path) -> None:
    """`sweep` every name of which a killed writer left something in `folder`: before the folder is listed."""
    left = [match[1] for path in folder.glob(".*") if (match := LEFT_BEHIND.fullmatch(path.name))]
    for name in sorted(set(left)):
        sweep(folder, name)


def sweep_tree(folder: Path, patterns: Iterable[str]) -> None:
    """`sweep_all` in a folder and in every folder below those of its entries that match one of the patterns."""
    sweep_all(folder)
    for pattern in patterns:
        for path in folder.glob(pattern):
            for inside, _, _ in os.walk(path):
                sweep_all(Path(inside))


def sweep(folder: Path, name: str) -> None:
    """Remove what killed writers left of `name` in `folder`; put back a folder whose replacement was cut short."""
    for old in folder.glob(f".{glob.escape(name)}.*.old"):
        if not (folder / name).exists() and (old / "replaced").exists():
            logger.info("%s: its replacement was cut short; the old one is put back", folder / name)
            os.rename(old / "replaced", folder / name)
        shutil.rmtree(old, ignore_errors=True)
    for tmp in folder.glob(f".{glob.escape(name)}.*.tmp"):
        logger.info("%s was left by a killed writer; removed", tmp)
        shutil.rmtree(tmp, ignore_errors=True) if tmp.is_dir() else tmp.unlink(missing_ok=True)


def verify_dir(path: Path, *, alone: bool = False, only: tuple[str, ...] | None = None) -> str | None:
    """None when every file of an atomic folder (or those of `only`) is as it was written; else a sentence naming what
    is wrong.

    A manifest from elsewhere is not trusted: names that lead out of the folder, links and anything but plain files are
    wrong. With `alone`, so is a file that the manifest does not list, hidden ones aside.
    """
    manifest_path = path / "MANIFEST.json"
    if not manifest_path.exists():
        return f"{path} has no MANIFEST.json (its writing was cut short)"
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        entries = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest.items()}
    except (OSError, ValueError, AttributeError, TypeError, KeyError, RecursionError):
        return f"{manifest_path} is not readable JSON"
    if only and not set(only) <= set(entries):
        return f"{manifest_path} does not name {', '.join(only)}"
    for name, (size, digest) in entries.items():
        if problem := _unsafe(path, name):
            return problem
        if only and name not in only:
            continue
        file = path / name
        if not file.exists():
            return f"{file} is missing"
        if not file.is_file():
            return f"{file} is not a plain file"
        if file.stat().st_size != size:
            return f"{file} has {file.stat().st_size} bytes instead of {size}"
        if sha256_file(file) != digest:
            return f"{file} is damaged (its SHA-256 changed)"
    return _unlisted(path, set(entries)) if alone else None


def _unsafe(path: Path, name: str) -> str | None:
    """What is wrong with a name in a manifest that may come from anywhere."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or ":" in parts[0]:
        return f"{path}/MANIFEST.json lists {name[:80]!r}, which is not a name inside the folder"
    for depth in range(1, len(parts) + 1):
        if path.joinpath(*parts[:depth]).is_symlink():
            return f"{path.joinpath(*parts[:depth])} is a link, where the file itself has to be"
    return None


def _unlisted(path: Path, known: set[str]) -> str | None:
    """A file beside those of the manifest could still be read by what opens the folder."""
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_symlink() and not name.parts[0].startswith("."):
            return f"{file} is a link, where the file itself has to be"
        if file.is_file() and name.as_posix() not in known | {"MANIFEST.json"} and not name.parts[0].startswith("."):
            return f"{file} is not in the folder's MANIFEST.json"
    return None
