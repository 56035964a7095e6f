"""The label stage: one store, filled by a teacher in this process or behind an endpoint."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from limbeck.errors import StoreError
from limbeck.label.local import run_label
from limbeck.label.plan import header_of, store_header
from limbeck.label.preflight import keep_record, prepare
from limbeck.label.remote import run_ask
from limbeck.store.reply_log import JOURNAL
from limbeck.store.writer import has_header, holds_rows, mend_header, read_header, store_key, store_progress
from limbeck.system.atomic import atomic_path
from limbeck.system.shelf import Shelf, content_key, mark

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from limbeck.models.hf import HfLM
    from limbeck.recipe import Recipe
    from limbeck.store import StoreHeader
    from limbeck.types import Callbacks, Row


def store_shelf(folder: Path) -> Shelf:
    """The store of a run, and those of other settings beside it."""
    return Shelf(folder, store_key, store_progress)


@dataclass(frozen=True)
class LabelJob:
    """Rows, the folder of their store, and the content of all that replies depend on besides the recipe (digests by
    name): models and files that keep their names may change."""

    folder: Path
    rows: Sequence[Row]
    inputs: dict[str, str]


def store_targets(
    recipe: Recipe,
    job: LabelJob,
    *,
    teacher: HfLM | None,
    tokenizer: PreTrainedTokenizerBase,
    callbacks: Callbacks,
) -> None:
    """Store what the recipe's teacher says of the rows of `job`: `teacher`, where it runs in this process, or else its
    endpoint. A store of other settings is set aside, that of these is taken up. Raises what `run_label`, `prepare` and
    `run_ask` raise."""
    folder, record, shelf = job.folder, None, store_shelf(job.folder)
    if recipe.teacher.is_local:
        assert teacher is not None
        header, label = store_header(recipe, teacher), partial(run_label, recipe, folder, teacher)
    else:
        keeping, record = prepare(recipe, shelf.folders(), tokenizer, callbacks.on_message)
        header, label = keeping.header, partial(run_ask, recipe, folder, keeping)
    if store_key(folder) is None and (folder / "store.json").exists():
        read_header(folder)  # raises: what is nobody's is not set aside, it may have been paid for
    key = content_key(header.fingerprint, job.inputs)
    shelf.claim(key, callbacks.on_message, earlier=header.fingerprint)
    mark(folder, key)
    mend_header(folder, header)
    if not recipe.teacher.is_local:
        _take_replies(shelf, header)
    if record is not None:
        keep_record(recipe, folder, record)
    label(job.rows, callbacks)


def _take_replies(shelf: Shelf, header: StoreHeader) -> None:
    """Begin a new store with the replies that were paid for in one that differs by what judges them alone (a schema
    that was replaced): it is the same teacher, asked the same."""
    journal = shelf.folder / JOURNAL
    if journal.exists():
        return
    others = [path for path in shelf.folders() if (path / JOURNAL).exists() and has_header(path, header)]
    if others:
        with atomic_path(journal) as tmp:
            shutil.copyfile(max(others, key=store_progress) / JOURNAL, tmp)
            tmp.chmod(0o600)


def has_targets(recipe: Recipe, folder: Path, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the store in `folder` is one that the recipe could make, undamaged, with all of `rows`. Who spoke is not
    compared: that would open the teacher."""
    try:
        found = read_header(folder)
        lm = found.lm, found.lm_name
        wanted = header_of(recipe, tokenizer, found.vocab, lm=lm, dtype=found.dtype)
        return wanted.fingerprint == found.fingerprint and holds_rows(folder, [row.id for row in rows])
    except (StoreError, ValueError, KeyError, TypeError):
        return False
