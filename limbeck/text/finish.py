"""Why a reply ended, in one vocabulary: every server has words of its own for the same few reasons.

`stop`: the model ended it, or a stop string did. `length`: it was cut off. `content_filter`, `refusal`, `tool_calls`
are what they say; `error` is no end at all: the server broke off. A word that is in no row of the table keeps its own
name, and whoever meets it says so: such a reply is not taken for one that ended by itself.
"""

from __future__ import annotations

import re
from typing import Any

ENDED = "stop"
UNKNOWN = "unknown"
"""No reason was given."""

WORDS = {
    "stop": "stop stopped stop_sequence stop_string stop_string_found stop_token stop_words eos eos_token eos_found "
    "eot end end_turn end_of_turn end_of_text end_of_sequence complete completed finish finished done normal "
    "success natural word",
    "length": "length max_tokens max_token max_length max_output_tokens max_completion_tokens max_new_tokens "
    "max_predicted_tokens_reached max_tokens_reached max_context_length limit token_limit model_length context_length "
    "context_length_exceeded context_length_reached context_window_exceeded model_context_window_exceeded truncated",
    "content_filter": "content_filter content_filtered content_filtering filter filtered sensitive safety recitation "
    "blocklist prohibited_content spii image_safety language guardrail_intervened guardrail moderation moderated "
    "content_policy error_toxic blocked",
    "refusal": "refusal refused",
    "tool_calls": "tool_calls tool_call tool_use tool function_call function_calls",
    "error": "error failed failure abort aborted cancel canceled cancelled user_cancel user_stopped "
    "insufficient_system_resource network_error model_unloaded load unload malformed_function_call timeout",
    "scored": "scored",  # ours: text that was given, of which nothing was written
    UNKNOWN: "null none undefined unknown unspecified",
}


def _key(word: str) -> str:
    """Without capitals, underscores and the prefix of an enumeration: FINISH_REASON_MAX_TOKENS is max_tokens."""
    return re.sub(r"[\W_]", "", word.lower()).removeprefix("finishreason")


_CANONICAL = {_key(word): reason for reason, words in WORDS.items() for word in words.split()}


def finish_reason(told: Any) -> str:
    """The reason in our words; its own name where it is none of them; `unknown` where nothing is told."""
    if isinstance(told, dict):  # SGLang's own form: {"type": "stop", "matched": 2}
        told = told.get("type")
    if told is None:
        return UNKNOWN
    word = told.strip() if isinstance(told, str) else str(told)
    begin = word.partition(":")[0]  # Gemini: "content_filter: PROHIBITED_CONTENT"
    return _CANONICAL.get(_key(word)) or _CANONICAL.get(_key(begin)) or word[:60].strip() or UNKNOWN


def is_understood(reason: str) -> bool:
    """Whether a reason says how the reply ended."""
    return reason in WORDS and reason != UNKNOWN
