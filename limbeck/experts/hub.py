"""To the Hub and back, through `huggingface_hub`, which finds the token itself (HF_TOKEN, or `hf auth login`).

What comes from there is a stranger's: every name and size is looked at before anything is fetched, and everything is
hashed before it is in the registry.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from limbeck.errors import ExpertError
from limbeck.experts.card import MOST_BYTES
from limbeck.experts.integrity import MANIFEST, FolderLimits, read_manifest, refuse_excess, refuse_file, safe_name
from limbeck.text.redact import make_redactor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from huggingface_hub.hf_api import ModelInfo

    from limbeck.experts.registry import Expert, Registry

HUBS_OWN = ".gitattributes"
"""The one file that the Hub itself puts into a repository."""
TRANSPORT: type[Exception] = HfHubHTTPError.__bases__[0]  # the errors of whichever HTTP client huggingface_hub brings


def push(expert: Expert, repo_id: str, *, private: bool = True) -> str:
    """Upload an expert, so that the repository holds exactly it; made where it does not exist. Returns the commit.

    Raises ExpertError with the Hub's reason."""
    api = HfApi(library_name="limbeck")
    with _told(f"pushing {expert.name} {expert.version} to {repo_id}"):
        api.create_repo(repo_id, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=expert.path,
            commit_message=f"{expert.name} {expert.version}",
            delete_patterns="*",
        )
    return str(done.oid)


def pull(
    repo_id: str, registry: Registry, *, revision: str | None = None, limits: FolderLimits | None = None
) -> Expert:
    """Add what a repository holds, byte for byte. Name and version are those of its card.

    Raises ExpertError with the Hub's reason, for a repository that is no expert, for names that are not allowed,
    pickles, more than `limits`, any file that is not as its manifest says, and for a version that is here already."""
    api = HfApi(library_name="limbeck")
    with _told(f"pulling {repo_id}"):
        info = api.model_info(repo_id, revision=revision, files_metadata=True)
    try:
        sizes = _listed(info)
        refuse_excess(sizes.values(), limits)
        with registry.workspace() as tmp:
            _fetch(api, info, [MANIFEST], tmp)
            manifest = read_manifest((tmp / MANIFEST).read_text(encoding="utf-8", errors="replace"))
            for name in sizes:
                if name not in (*manifest, MANIFEST, HUBS_OWN):
                    raise ExpertError(f"{name} is not in its {MANIFEST}")
            for name, entry in manifest.items():
                if sizes.get(name) != entry["bytes"]:
                    raise ExpertError(f"{name} has {sizes.get(name, 'no')} bytes there instead of {entry['bytes']}")
            _fetch(api, info, list(manifest), tmp)
            shutil.rmtree(tmp / ".cache", ignore_errors=True)  # huggingface_hub's notes on what it fetched
            return registry.adopt(tmp)
    except ExpertError as error:
        raise ExpertError(f"{repo_id} was not added: {error}") from error


def _listed(info: ModelInfo) -> dict[str, int]:
    """Sizes by name. Raises ExpertError for a name that is not allowed, and without a manifest."""
    sizes = {}
    for file in info.siblings or ():
        if file.rfilename != HUBS_OWN:
            refuse_file(safe_name(file.rfilename))
        sizes[file.rfilename] = int(file.size or 0)
    if sizes.get(MANIFEST, MOST_BYTES) >= MOST_BYTES:
        raise ExpertError(f"it is no expert: it has no {MANIFEST}, or one that is far too large")
    return sizes


def _fetch(api: HfApi, info: ModelInfo, names: list[str], folder: Path) -> None:
    for name in names:
        with _told(f"fetching {name} of {info.id}"):
            api.hf_hub_download(info.id, name, revision=info.sha, local_dir=folder)


@contextlib.contextmanager
def _told(doing: str) -> Iterator[None]:
    """The Hub's and the network's errors as ours, without any key that they may quote."""
    try:
        yield
    except (HFValidationError, TRANSPORT, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, ExpertError):
            raise
        redactor = make_redactor(["none"]).with_secrets([os.environ.get("HF_TOKEN", "")])
        reason = redactor.text(str(error))[:600]
        raise ExpertError(
            f"{doing} failed: {reason}. A private repository, and every upload, needs a token: set HF_TOKEN or run "
            "`hf auth login`."
        ) from None
