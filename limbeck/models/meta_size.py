"""How large a model would be, built without weights, before any memory is taken for it.

transformers fills what the weights lack with random numbers, whatever its size, and calls each error what it likes.
"""

from __future__ import annotations

import functools
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import AutoConfig, AutoModelForCausalLM

from limbeck.errors import TeacherError
from limbeck.models.card import hub_id
from limbeck.models.config_check import ADVICE, CONFIG, check_config

if TYPE_CHECKING:
    from limbeck.models.config_check import WeightSizes

logger = logging.getLogger(__name__)

BUILDING = threading.RLock()
"""Held while transformers makes a model: it sets the process's default dtype meanwhile, so that two at a time would
leave the one's to the other."""

SLACK = 2**24
"""Elements that are made and not stored: buffers, tied heads of small models."""


def refuse_lies(path: str | Path) -> WeightSizes | None:
    """As `check_config`, of a folder or a hub id; None for what has no config.json. Before anything of it is read by
    transformers, whose tokenizers read the config too; files that did not change are not read again."""
    folder = _folder(path)
    if not (folder / CONFIG).is_file():
        return None
    files = [*folder.glob("*.json"), *folder.glob("*.safetensors")]
    return _looked_at(folder, tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)))


@functools.lru_cache(maxsize=64)
def _looked_at(folder: Path, _stamps: tuple[tuple[Path, int, int], ...]) -> WeightSizes | None:
    return check_config(folder)


def _folder(path: str | Path) -> Path:
    """The folder itself, or what of a hub id is on this machine: its config.json is fetched, as it will be anyway."""
    if hub_id(str(path)) is None:
        return Path(path)
    try:
        return Path(hf_hub_download(str(path), CONFIG)).parent
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:  # whoever opens it will say so
        logger.debug("the config of %s is not looked at: %s", path, error)
        return Path(path)


def refuse_oversized(path: str | Path, *, trust_remote_code: bool = False) -> None:
    """Raise TeacherError for a model whose config.json cannot be built, or would be built larger than its weights are:
    in bounded time and memory, whatever stands there. What has no weights here yet is held to the bounds of
    `check_config`; what is no model is left to whoever opens it, and so is code of its own, where that may run."""
    folder = _folder(path)
    weights = refuse_lies(folder)
    if weights is None or trust_remote_code:
        return
    try:
        with BUILDING:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # a stranger's numbers make anything fail anywhere
        raise TeacherError(
            f"{folder / CONFIG} makes no model ({type(error).__name__}: {str(error)[:600]}). {ADVICE}"
        ) from error
    stated = sum(part.numel() for part in [*model.parameters(), *model.buffers()])
    held = 8 * weights.num_bytes if "quantization_config" in config.to_dict() else weights.elements
    if stated > 2 * held + SLACK:
        raise TeacherError(
            f"{folder / CONFIG} makes a model of {stated:,} numbers, and its weights are {held:,}. {ADVICE}"
        )
