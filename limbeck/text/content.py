"""What a message says, in whichever form a server writes it: a text or parts, with reasoning beside it or in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from limbeck.errors import DataError

BESIDE = ("reasoning_content", "reasoning", "thinking", "reasoning_text", "thought", "reasoning_details")
"""Keys of a message that hold its reasoning; the first that is there counts."""

TEXT_PARTS = ("text", "output_text", "input_text")
THOUGHTS = (
    "thinking",
    "reasoning",
    "thought",
    "reasoning_text",
    "reasoning_content",
    "redacted_thinking",
    "summary_text",
)
WITHIN = ("thinking", "reasoning", "thought", "text", "reasoning_text", "reasoning_content", "summary", "content")
DEEPEST = 8


class Spoken(NamedTuple):
    """The words of a message, its reasoning, and its refusal; "" for what there is none of."""

    text: str
    reasoning: str
    refusal: str


def spoken(message: Mapping[str, Any]) -> Spoken:
    """Raises DataError for a content that is no text, with the name of what it is."""
    text, thought, refusal = _content(message.get("content"))
    beside = next((found for name in BESIDE if (found := _thought(message.get(name), 0))), "")
    told = message.get("refusal")
    return Spoken(text, beside or thought, refusal or (told if isinstance(told, str) else ""))


def _content(value: Any) -> Spoken:
    if value is None or isinstance(value, str):
        return Spoken(value or "", "", "")
    found: dict[str, list[str]] = {"text": [], "reasoning": [], "refusal": []}
    for part in [value] if isinstance(value, Mapping) else value if isinstance(value, list) else [None]:
        if isinstance(part, str):
            found["text"].append(part)
        elif isinstance(part, Mapping):
            where, words = _part(part)
            found[where].append(words)
        else:
            raise DataError(f"the content is {str(value)[:40]!r} ({type(value).__name__}), not a text.")
    return Spoken(*map("".join, found.values()))


def _part(part: Mapping[str, Any]) -> tuple[str, str]:
    """Where the words of a part belong, and the words."""
    kind = part.get("type") or "text"
    if kind in THOUGHTS or part.get("thought") is True:  # Gemini marks parts so
        return "reasoning", _thought(part, 0)
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return "refusal", part["refusal"]
    if kind in TEXT_PARTS and isinstance(part.get("text"), str):
        return "text", part["text"]
    raise DataError(f"the content has a part of type {str(kind)[:40]!r}, which is no text.")


def _thought(value: Any, depth: int) -> str:
    """Reasoning is a text, parts, or parts within a part. "" for any other form: nothing rests on it."""
    if isinstance(value, str):
        return value
    if depth > DEEPEST:
        return ""
    if isinstance(value, list):
        return "".join(_thought(one, depth + 1) for one in value)
    if isinstance(value, Mapping):
        return next((found for name in WITHIN if (found := _thought(value.get(name), depth + 1))), "")
    return ""
