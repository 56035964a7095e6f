"""What the recipe needs of its endpoint, against what the endpoint was seen to do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.check.findings import Fact, Finding
from limbeck.check.opened import Opened, problem_of
from limbeck.errors import LimbeckError
from limbeck.label.preflight import missing, needs_probe, run_probe, sentences
from limbeck.label.recorders import reader_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.recipe import Recipe

NO_RECORD = Path(os.devnull) / "record"


def endpoint_offers(recipe: Recipe, opened: Opened) -> Iterator[Finding]:
    """A few requests, where the recipe needs more than one reply to each prompt."""
    if not needs_probe(recipe):
        return
    said: list[str] = []
    with problem_of("teacher", LimbeckError):
        record = run_probe(recipe, NO_RECORD, reader_for(recipe, opened.reader.tokenizer), said.append)
    yield from map(Fact, [*said, *sentences(record)])
    yield from missing(recipe, record)
