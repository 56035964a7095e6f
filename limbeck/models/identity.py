"""What a model is, by its bytes: a folder by the files that are read from it, a file by itself, a hub id by its commit.

A name says where a model lies. Another one may lie there tomorrow.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.file_download import repo_folder_name

from limbeck.models.gguf_import import DEMO_SHA256, DEMO_TEACHER

if TYPE_CHECKING:
    from limbeck.system.hashes import FileHashes

logger = logging.getLogger(__name__)

READ = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py", "additional_chat_templates/*.jinja")
"""Files of a model's folder that may decide what it says: weights, configs, tokenizer, templates, its own code."""

UNREAD = frozenset({"MANIFEST.json", "limbeck.json", "student.json", "trainer_state.json"})
"""Those that say something about the model: a card gets scores, and the model stays what it is."""

TRANSPORT: type[Exception] = HfHubHTTPError.__bases__[0]  # the errors of whichever HTTP client huggingface_hub brings
HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
HUB_SECONDS = 5.0


def model_content(path: str, hashes: FileHashes) -> dict[str, str]:
    """Digest by file, as the recipe's path names it; the commit of a hub id; {} where nothing can be told."""
    if path == DEMO_TEACHER:
        return {path: DEMO_SHA256}
    place = Path(path).expanduser()
    if place.is_file():
        return {path: hashes.of(place)}
    if place.is_dir():
        files = sorted({file for pattern in READ for file in place.glob(pattern) if file.is_file()})
        return {str(file): hashes.of(file) for file in files if file.name not in UNREAD}
    commit = hub_commit(path, "model")
    return {path: commit} if commit else {}


def folder_content(path: str, hashes: FileHashes) -> dict[str, str]:
    """Digest of every file below a folder, or of a file; {} where there is neither."""
    place = Path(path).expanduser()
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    return {str(file): hashes.of(file) for file in files if file.is_file()}


def hub_commit(name: str, kind: str) -> str | None:
    """The commit that a hub id ("model" or "dataset") stands for now, or, where the hub is not reached, that of the
    copy on this machine. None where there is neither."""
    if not HUB_ID.fullmatch(name) or Path(name).exists():
        return None
    try:
        return HfApi().repo_info(name, repo_type=kind, timeout=HUB_SECONDS).sha
    except (OSError, ValueError, TRANSPORT, HFValidationError, OfflineModeIsEnabled) as error:
        logger.info("the hub does not say what %s is (%s); the copy here counts", name, error)
    ref = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind) / "refs" / "main"
    return ref.read_text().strip() if ref.is_file() else None
