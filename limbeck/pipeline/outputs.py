"""What the outputs of a stage say of themselves: compared with the stage's record before it is skipped."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from limbeck.models.weights import CARD_FILE
from limbeck.store.writer import read_header, read_manifest
from limbeck.system.atomic import fingerprint, sha256_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

CARD = frozenset({CARD_FILE, "README.md"})
"""Files of a model folder into which the evaluation writes scores: the model stays what it is."""


def identity_of(paths: Iterable[Path]) -> str:
    """A fingerprint of files by their bytes, of folders with a manifest by that, of stores by header and shards. Raises
    OSError, ValueError, TypeError, KeyError or StoreError where one of them cannot be read."""
    return fingerprint([_said(path) for path in paths])


def _said(path: Path) -> Any:
    if path.is_file():
        return sha256_file(path)
    if (path / "store.json").exists():
        return [read_header(path).fingerprint, [entry["files"] for entry in read_manifest(path)]]
    manifest = path / "MANIFEST.json"
    if manifest.exists():
        return {name: entry for name, entry in json.loads(manifest.read_text()).items() if name not in CARD}
    return {str(file.relative_to(path)): sha256_file(file) for file in sorted(path.rglob("*")) if file.is_file()}
