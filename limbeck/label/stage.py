"""The label stage: one store, filled by a teacher in this process or behind an endpoint."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from limbeck.errors import StoreError
from limbeck.label.local import run_label
from limbeck.label.plan import header_of, store_header
from limbeck.label.preflight import keep_record, prepare
from limbeck.label.remote import run_ask
from limbeck.store.writer import begin_store, holds_rows, read_header, store_key, store_progress
from limbeck.system.shelf import Shelf

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from limbeck.models.hf import HfLM
    from limbeck.recipe import Recipe
    from limbeck.types import Callbacks, Row


def store_shelf(folder: Path) -> Shelf:
    """The store of a run, and those of other settings beside it."""
    return Shelf(folder, store_key, store_progress)


def store_targets(
    recipe: Recipe,
    folder: Path,
    rows: Sequence[Row],
    *,
    teacher: HfLM | None,
    tokenizer: PreTrainedTokenizerBase,
    callbacks: Callbacks,
) -> None:
    """Store in `folder` what the recipe's teacher says of `rows`: `teacher`, where it runs in this process, or else its
    endpoint. A store of other settings is set aside, that of these is taken up. Raises what `run_label`, `prepare` and
    `run_ask` raise."""
    record, shelf = None, store_shelf(folder)
    if recipe.teacher.is_local:
        assert teacher is not None
        header, label = store_header(recipe, teacher), partial(run_label, recipe, folder, teacher)
    else:
        keeping, record = prepare(recipe, shelf.folders(), tokenizer, callbacks.on_message)
        header, label = keeping.header, partial(run_ask, recipe, folder, keeping)
    shelf.claim(header.fingerprint, callbacks.on_message)
    begin_store(folder, header)
    if record is not None:
        keep_record(recipe, folder, record)
    label(rows, callbacks)


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
