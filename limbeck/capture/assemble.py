"""A streamed answer put together again: server-sent events to one JSON answer.

The chunks are those of OpenAI's streaming API, and of the servers that follow it: `delta` for chats, `text` for plain
completions. What is repeated in every chunk is taken from the last that has it; texts, tool calls and
log-probabilities are joined by the index of their choice.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from limbeck.errors import CaptureError
from limbeck.system.sse import DONE, split_events

TEXTS = ("content", "reasoning_content", "reasoning", "refusal")
CUT = "cut"
"""Finish reason of an answer that ended before its end."""


class Assembled(NamedTuple):
    """`answer` as if it had not been streamed. `finished`: every choice has its finish reason, and no error came in its
    place; `closed`: the stream said itself that it was over."""

    answer: dict[str, Any]
    finished: bool
    closed: bool


def assemble(body: bytes) -> Assembled:
    """An event that was cut off is left out. Raises CaptureError when the stream holds no chunk of a completion."""
    answer: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    failed = closed = False
    for data in split_events(body)[0]:
        if data.strip() == DONE:
            closed = True
            break
        try:
            chunk = json.loads(data)
        except ValueError as error:
            raise CaptureError("an event of the stream is not JSON.") from error
        if not isinstance(chunk, dict) or chunk.get("error"):
            failed = True
            continue
        for name in ("id", "model", "system_fingerprint", "usage", "created", "service_tier"):
            if chunk.get(name) is not None:
                answer[name] = chunk[name]
        for part in chunk.get("choices") or []:
            _add(choices.setdefault(_index(part), {}), part)
    if not choices:
        raise CaptureError("the stream holds no choice.")
    answer["choices"] = [{"index": index, **choice} for index, choice in sorted(choices.items())]
    finished = not failed and all(choice.get("finish_reason") for choice in choices.values())
    return Assembled(answer, finished, closed)


def _index(part: Any) -> int:
    index = part.get("index", 0) if isinstance(part, dict) else None
    if not isinstance(index, int):
        raise CaptureError("a choice of the stream has no number.")
    return index


def _add(choice: dict[str, Any], part: dict[str, Any]) -> None:
    if part.get("finish_reason"):
        choice["finish_reason"] = part["finish_reason"]
    if isinstance(part.get("logprobs"), dict):
        _add_logprobs(choice, part["logprobs"])
    if "text" in part:
        choice["text"] = choice.get("text", "") + (part["text"] or "")
    delta = part.get("delta")
    if isinstance(delta, dict):
        message = choice.setdefault("message", {"role": "assistant", "content": None})
        for name in TEXTS:
            if isinstance(delta.get(name), str):
                message[name] = (message.get(name) or "") + delta[name]
        for number, call in enumerate(delta.get("tool_calls") or []):
            _add_call(message.setdefault("tool_calls", []), call, number)


def _add_logprobs(choice: dict[str, Any], logprobs: dict[str, Any]) -> None:
    kept = choice.setdefault("logprobs", {})
    for name, values in logprobs.items():
        if isinstance(values, list):
            kept.setdefault(name, []).extend(values)


def _add_call(calls: list[dict[str, Any]], call: Any, number: int) -> None:
    if not isinstance(call, dict):
        raise CaptureError("a tool call of the stream is no object.")
    index = call.get("index", number)
    kept = next((one for one in calls if one["index"] == index), None)
    if kept is None:
        kept = {"index": index, "type": "function", "function": {"name": "", "arguments": ""}}
        calls.append(kept)
    for name in ("id", "type"):
        if call.get(name):
            kept[name] = call[name]
    function = call.get("function") or {}
    for name in ("name", "arguments"):
        kept["function"][name] += function.get(name) or ""
