"""What a user would have written: prompts of rows, as a router sees them, and a sample of them."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from limbeck.types import Row

FIRST_TOKENS = 64
"""Of plain text, which has no prompt: its beginning stands for one."""
LONGEST = 8000
"""Characters of a prompt that are kept."""

T = TypeVar("T")


def prompt_of(row: Row, tokenizer: PreTrainedTokenizerBase) -> str:
    """The first thing that the user says; of a pair without a template its prompt; of plain text its beginning."""
    if row.messages:
        return first_user_turn(json.loads(row.messages))[:LONGEST]
    start = row.spans[0][0] if row.spans else None
    if start is None:
        return row.text[:LONGEST]
    kept = row.ids[: start if start > 1 else FIRST_TOKENS]
    return str(tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))[:LONGEST]


def first_user_turn(messages: Sequence[dict[str, object]]) -> str:
    """Its text; "" when the user says nothing. Content may be text or parts of which some are text."""
    for turn in messages:
        if turn.get("role") == "user":
            content = turn.get("content")
            if isinstance(content, list):
                return "\n".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
            return str(content or "")
    return ""


def sample(items: Sequence[T], most: int, seed: int) -> list[T]:
    """At most `most` of them, drawn without replacement, in their order; the same for a seed."""
    if len(items) <= most:
        return list(items)
    chosen = sorted(random.Random(seed).sample(range(len(items)), most))
    return [items[index] for index in chosen]
