"""Prompts with several replies: their rows stand on one side of the split, so that no held-out row has a prompt that
was trained on."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from limbeck.data.readers import read_examples
from limbeck.data.split import row_id
from limbeck.recipe import GenerateMode, ProblemsSource, StdlibSource

if TYPE_CHECKING:
    from limbeck.recipe import Recipe
    from limbeck.text.encode import Example


def prompt_id(example: Example) -> str | None:
    """16 hex digits over what comes before the first reply; None for plain text. The rest of a conversation is not
    looked at: its replies are all learnt, the first one too."""
    if example.messages is not None:
        roles = [turn.get("role") for turn in example.messages]
        asked = example.messages[: roles.index("assistant") if "assistant" in roles else len(roles)]
        said = [[turn.get("role"), str(turn.get("content") or "").strip()] for turn in asked]
    elif example.prompt is not None:
        said = [["user", example.prompt.strip()]]
    else:
        return None
    return row_id(json.dumps(said))


def shared_prompts(recipe: Recipe) -> frozenset[str]:
    """Ids of the prompts that stand in several different rows. The rows are read once more, and not encoded: whether a
    prompt is shared is known before the first row is placed. Where none is, rows are placed by their text alone, as
    they always were. Without replies a row is its prompt."""
    source = recipe.data.source
    if isinstance(source, StdlibSource | ProblemsSource) or isinstance(recipe.trace.mode, GenerateMode):
        return frozenset()
    first: dict[str, bytes] = {}
    shared: set[str] = set()
    for example in read_examples(source, bad_rows="skip", on_bad=lambda _: None):
        id = prompt_id(example)
        if id is None:
            continue
        whole = json.dumps([example.completion, example.messages], default=str)
        digest = hashlib.blake2b(whole.encode(), digest_size=8).digest()
        if first.setdefault(id, digest) != digest:
            shared.add(id)
    return frozenset(shared)
