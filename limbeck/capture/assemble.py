"""A streamed answer put together again: server-sent events to one JSON answer.

The chunks are those of OpenAI's streaming API, and of the servers that follow it: `delta` for chats, `text` for plain
completions. What is repeated in every chunk is taken from the last that has it; texts, tool calls and
log-probabilities are joined by the index of their choice. Servers differ in what they leave out: the index of a choice
or a call, the last blank line, `[DONE]`.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from limbeck.errors import CaptureError, DataError
from limbeck.system.sse import DONE, data_of, split_events
from limbeck.text.content import spoken

CUT = "cut"
"""Finish reason of an answer that ended before its end."""


class Assembled(NamedTuple):
    """`answer` as if it had not been streamed. `finished`: every choice has its finish reason; `failed`: an error came
    in the place of an event; `closed`: the stream said itself that it was over."""

    answer: dict[str, Any]
    finished: bool
    failed: bool
    closed: bool

    def is_whole(self, ended_well: bool) -> bool:
        """Whether nothing is missing. `ended_well`: the connection was not broken off. A client may leave as soon as it
        has read [DONE]; a stream that ends without it must have told why each choice ended."""
        return not self.failed and (self.closed or (self.finished and ended_well))


def assemble(body: bytes) -> Assembled:
    """An event that was cut off is left out. Raises CaptureError when the stream holds no chunk of a completion."""
    answer: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    failed = closed = False
    for data in _events(body):
        if data.strip() == DONE:
            closed = True
            break
        chunk = _parsed(data)
        if not isinstance(chunk, dict) or chunk.get("error"):
            failed = True
            continue
        for name in ("id", "model", "system_fingerprint", "usage", "created", "service_tier"):
            if chunk.get(name) is not None:
                answer[name] = chunk[name]
        for part in _list(chunk.get("choices")):
            _add(choices.setdefault(_index(part), {}), part)
    if not choices:
        raise CaptureError("the stream holds no choice.")
    answer["choices"] = [{"index": index, **choice} for index, choice in sorted(choices.items())]
    finished = all(choice.get("finish_reason") for choice in choices.values())
    return Assembled(answer, finished, failed, closed)


def _events(body: bytes) -> list[str]:
    """The data of all events. The last one may lack its blank line; half of one is no JSON, and is left out."""
    events, rest = split_events(body)
    last = data_of(rest)
    if last is not None and last.strip() != DONE:
        try:
            json.loads(last)
        except (ValueError, RecursionError):
            return events
    return events if last is None else [*events, last]


def _parsed(data: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CaptureError("an event of the stream is not JSON.") from error


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _index(part: Any) -> int:
    index = part.get("index") if isinstance(part, dict) else ""
    if index is None:  # where there is one choice
        return 0
    if not isinstance(index, int):
        raise CaptureError("a choice of the stream has no number.")
    return index


def _add(choice: dict[str, Any], part: dict[str, Any]) -> None:
    if part.get("finish_reason"):
        choice["finish_reason"] = part["finish_reason"]
    if isinstance(part.get("logprobs"), dict):
        kept = choice.setdefault("logprobs", {})
        for name, values in part["logprobs"].items():
            if isinstance(values, list):
                kept.setdefault(name, []).extend(values)
    if isinstance(part.get("text"), str):
        choice["text"] = choice.get("text", "") + part["text"]
    if isinstance(part.get("delta"), dict):
        _add_delta(choice.setdefault("message", {"role": "assistant", "content": None}), part["delta"])
    elif isinstance(part.get("message"), dict):  # all of it at once
        choice["message"] = part["message"]


def _add_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    try:
        said = spoken(delta)
    except DataError as error:
        raise CaptureError(str(error)) from error
    if delta.get("content") is not None:
        message["content"] = (message.get("content") or "") + said.text
    for name, words in (("reasoning_content", said.reasoning), ("refusal", said.refusal)):
        if words:
            message[name] = (message.get(name) or "") + words
    calls = _list(delta.get("tool_calls"))
    if isinstance(delta.get("function_call"), dict):  # the older form: one call, without a number
        calls = [{"index": 0, "function": delta["function_call"]}]
    for call in calls:
        _add_call(message.setdefault("tool_calls", []), call)


def _add_call(calls: list[dict[str, Any]], call: Any) -> None:
    if not isinstance(call, dict):
        raise CaptureError("a tool call of the stream is no object.")
    told = call.get("function")
    function: dict[str, Any] = told if isinstance(told, dict) else {}
    kept = _call_of(calls, call, function)
    for name in ("id", "type"):
        if isinstance(call.get(name), str) and call[name]:
            kept[name] = call[name]
    for name in ("name", "arguments"):
        value = function.get(name)
        words = value if isinstance(value, str) else "" if value is None else json.dumps(value)
        if name == "arguments" or words != kept["function"]["name"]:  # some repeat the name with every piece
            kept["function"][name] += words


def _call_of(calls: list[dict[str, Any]], call: dict[str, Any], function: dict[str, Any]) -> dict[str, Any]:
    """The call that a piece belongs to: the last one of its index; a new one where it brings another id or, among calls
    without index, another name. Some servers give every call the index 0."""
    index, id = call.get("index"), call.get("id")
    same = [one for one in calls if index is None or one["index"] == index]
    last = same[-1] if same else None
    if last is not None:
        other_id = bool(id) and last.get("id") not in (None, id)
        named_anew = index is None and not id and bool(function.get("name")) and bool(last["function"]["name"])
        if not other_id and not named_anew:
            return last
    number = index if isinstance(index, int) and last is None else len(calls)
    calls.append({"index": number, "type": "function", "function": {"name": "", "arguments": ""}})
    return calls[-1]
