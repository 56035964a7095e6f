"""The label stage: one store, filled by a teacher in this process or behind an endpoint."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from limbeck.label.local import run_label
from limbeck.label.plan import store_header
from limbeck.label.preflight import keep_record, prepare
from limbeck.label.remote import run_ask
from limbeck.store.writer import read_header
from limbeck.system.rundir import set_aside

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from limbeck.models.hf import HfLM
    from limbeck.recipe import Recipe
    from limbeck.types import Callbacks, Row


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
    endpoint. A store of other settings is set aside. Raises what `run_label`, `prepare` and `run_ask` raise."""
    record = None
    if recipe.teacher.is_local:
        assert teacher is not None
        header, label = store_header(recipe, teacher), partial(run_label, recipe, folder, teacher)
    else:
        keeping, record = prepare(recipe, folder, tokenizer, callbacks.on_message)
        header, label = keeping.header, partial(run_ask, recipe, folder, keeping)
    if (folder / "store.json").exists() and read_header(folder).fingerprint != header.fingerprint:
        set_aside(folder, read_header(folder).fingerprint, callbacks.on_message)
    if record is not None:
        keep_record(recipe, folder, record)
    label(rows, callbacks)
