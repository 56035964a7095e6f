"""What the outputs of a stage say of themselves: compared with the stage's record before it is skipped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limbeck.errors import StoreError
from limbeck.models.weights import CARD_FILE
from limbeck.store.writer import read_header, read_manifest
from limbeck.system.atomic import fingerprint, sha256_file, verify_dir
from limbeck.system.sealed import REMADE, read_json

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

CARD = frozenset({CARD_FILE, "README.md"})
"""Files of a model folder into which the evaluation writes scores: the model stays what it is."""


def identity_of(paths: Iterable[Path]) -> str:
    """A fingerprint of files by their bytes, of folders with a manifest by that, of stores by header and shards. Every
    byte is read but those of shards, of which `has_targets` reads them. Raises
    OSError, ValueError, TypeError, KeyError or StoreError where one of them cannot be read."""
    return fingerprint([_said(path) for path in paths])


def _said(path: Path) -> Any:
    if path.is_file():
        return sha256_file(path)
    if (path / "store.json").exists():
        return [read_header(path).fingerprint, [entry["files"] for entry in read_manifest(path)]]
    manifest = path / "MANIFEST.json"
    if manifest.exists():
        if problem := verify_dir(path):
            raise StoreError(problem)
        return {name: entry for name, entry in read_json(manifest, REMADE).items() if name not in CARD}
    return {str(file.relative_to(path)): sha256_file(file) for file in sorted(path.rglob("*")) if file.is_file()}
