"""From the bytes of a request and its answer to a record: what was asked, what came back, and nothing that must not be
kept. Only what is named here is written: a field that nobody thought of may hold a key."""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from limbeck.capture.assemble import CUT, assemble
from limbeck.errors import CaptureError, DataError
from limbeck.text.content import spoken
from limbeck.text.finish import finish_reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.text.redact import Redactor

VERSION = 1
MAX_UNPACKED = 64 * 2**20
"""Most bytes of a compressed body: a small one can hide much."""

MAX_TAGS, MAX_TAG = 64, 512
LONG_MEDIA = 200
"""Images and sounds in messages of more characters are kept as their hash."""

SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "n", "best_of", "max_tokens", "max_completion_tokens", "stop", "seed"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "logprobs", "top_logprobs"),
    *("response_format", "reasoning_effort", "verbosity", "tool_choice", "parallel_tool_calls", "echo", "suffix"),
)
MESSAGE = ("role", "content", "name", "refusal", "reasoning_content", "tool_calls", "tool_call_id")


def record_of(frame: Frame, redactor: Redactor, tags: dict[str, str]) -> dict[str, Any]:
    """The record of an exchange. Raises CaptureError when it holds no completion that can be read."""
    try:
        return _record_of(frame, redactor, tags)
    except RecursionError as error:
        raise CaptureError("the exchange is nested too deeply.") from error


def _record_of(frame: Frame, redactor: Redactor, tags: dict[str, str]) -> dict[str, Any]:
    meta = frame.meta
    request = _json(_unpack(frame.request, meta["request-encoding"]), "the request")
    answer, whole = _answer(frame)
    clean = redactor.with_secrets(meta["secrets"])
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        raise CaptureError("the answer holds no choice.")
    replies = [_reply(choice, clean, whole) for choice in choices]
    record = {
        "version": VERSION,
        "id": clean.text(meta["id"]),
        "time": datetime.fromtimestamp(meta["time"], UTC).isoformat(timespec="milliseconds"),
        "conversation": clean.text(meta["conversation"]),
        "path": clean.text(meta["path"]),
        "model_asked": _name(request.get("model"), clean),
        "model": _name(answer.get("model"), clean) or _name(request.get("model"), clean),
        **_asked(request, clean),
        "replies": replies,
        "finish_reasons": [reply["finish_reason"] for reply in replies],
        "usage": clean.value(answer.get("usage")),
        "sampling": {name: clean.value(request[name]) for name in SAMPLING if request.get(name) is not None},
        "stream": request.get("stream") is True,
        "seconds": {"first_byte": round(meta["first_byte"], 4), "total": round(meta["seconds"], 4)},
        "tags": _tags([tags, request.get("metadata"), meta["tags"]], clean),
        "system_fingerprint": _name(answer.get("system_fingerprint"), clean),
    }
    return record


def _unpack(body: bytes, encoding: str) -> bytes:
    """Raises CaptureError for an encoding that is not gzip, deflate or none, and for bodies that unpack to too much."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise CaptureError(f"a body is packed with {encoding[:20]!r}; only gzip and deflate can be read.")
    try:
        # 32 + 15: zlib and gzip by their heads; -15: deflate without one, as some servers send it.
        unpacker = zlib.decompressobj(47)
        try:
            unpacked = unpacker.decompress(body, MAX_UNPACKED)
        except zlib.error:
            unpacker = zlib.decompressobj(-15)
            unpacked = unpacker.decompress(body, MAX_UNPACKED)
    except (zlib.error, gzip.BadGzipFile) as error:
        raise CaptureError("a packed body is damaged.") from error
    if unpacker.unconsumed_tail:
        raise CaptureError(f"a body unpacks to more than {MAX_UNPACKED:,} bytes.")
    return unpacked


def _json(body: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(body.decode())
    except (ValueError, RecursionError) as error:  # ValueError is also what is no UTF-8
        raise CaptureError(f"{what} is not JSON.") from error
    if not isinstance(value, dict):
        raise CaptureError(f"{what} is no JSON object.")
    return value


def _answer(frame: Frame) -> tuple[dict[str, Any], bool]:
    """The answer, streamed or not, and whether it is whole. A cut answer that was not streamed is no JSON any more."""
    body = _unpack(frame.reply, frame.meta["content-encoding"])
    if frame.meta["content-type"].split(";")[0].strip().lower() != "text/event-stream":
        return _json(body, "the answer"), frame.meta["whole"]
    found = assemble(body)
    return found.answer, found.is_whole(frame.meta["whole"])


def _asked(request: dict[str, Any], clean: Redactor) -> dict[str, Any]:
    """Messages or prompt, and tools where there are some."""
    asked: dict[str, Any] = {}
    messages = request.get("messages")
    if messages is not None:
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise CaptureError("the request's messages are no list of objects.")
        asked["messages"] = [_message(message, clean) for message in messages]
    elif request.get("prompt") is not None:
        asked["prompt"] = clean.value(request["prompt"])
    else:
        raise CaptureError("the request has neither messages nor a prompt.")
    if request.get("tools"):
        asked["tools"] = clean.value(request["tools"])
    return asked


def _message(message: dict[str, Any], clean: Redactor) -> dict[str, Any]:
    kept = {name: message[name] for name in MESSAGE if message.get(name) is not None}
    if isinstance(kept.get("content"), list):
        kept["content"] = [_without_media(part) for part in kept["content"]]
    return clean.value(kept)


def _without_media(value: Any) -> Any:
    """A part of a message with long images, sounds and files replaced by their hash."""
    if isinstance(value, list):
        return [_without_media(one) for one in value]
    if isinstance(value, dict):
        return {name: _without_media(one) if name != "text" else one for name, one in value.items()}
    if isinstance(value, str) and len(value) > LONG_MEDIA and not value.startswith(("http:", "https:")):
        kind = value[:40].partition(";")[0] if value.startswith("data:") else "data"
        return f"{kind};sha256={hashlib.sha256(value.encode(errors='replace')).hexdigest()}"
    return value


def _reply(choice: Any, clean: Redactor, whole: bool) -> dict[str, Any]:
    """One choice. Its log-probabilities spell its text out token by token, so they go when the text was redacted."""
    if not isinstance(choice, dict):
        raise CaptureError("a choice of the answer is no object.")
    message = choice.get("message")
    given = message if isinstance(message, dict) else {"content": choice.get("text")}
    raw = _said(given)
    index = choice.get("index")
    kept = {"index": index if isinstance(index, int) else 0, "content": None, **clean.value(raw)}
    finish = finish_reason(choice.get("finish_reason"))
    if raw.get("refusal") and not raw.get("content"):
        finish = "refusal"
    kept["finish_reason"] = clean.text(finish) if whole and finish != "error" else CUT
    if isinstance(choice.get("logprobs"), dict):
        if clean.value(raw) == raw and clean.value(_spelled(choice["logprobs"])) == _spelled(choice["logprobs"]):
            kept["logprobs"] = {name: value for name, value in choice["logprobs"].items() if value is not None}
        else:
            kept["logprobs_redacted"] = True
    return kept


def _said(given: dict[str, Any]) -> dict[str, Any]:
    """What a reply says, under the names of a record. A content that is no text is kept as it is, without its media."""
    calls = {"tool_calls": given["tool_calls"]} if given.get("tool_calls") else {}
    try:
        said = spoken(given)
    except DataError:
        return {"content": _without_media(given["content"]), **calls}
    told = {"reasoning_content": said.reasoning, "refusal": said.refusal}
    content = {} if given.get("content") is None else {"content": said.text}
    return {**content, **{name: words for name, words in told.items() if words}, **calls}


def _spelled(logprobs: dict[str, Any]) -> str:
    """The text that log-probabilities spell: with `echo` it is the prompt as well."""
    lists = [logprobs.get(name) for name in ("content", "refusal")]
    entries = [entry for one in lists if isinstance(one, list) for entry in one]
    told = logprobs.get("tokens")
    tokens = [entry.get("token") for entry in entries if isinstance(entry, dict)]
    tokens = tokens or (told if isinstance(told, list) else [])
    return "".join(token for token in tokens if isinstance(token, str))


def _name(value: Any, clean: Redactor) -> str | None:
    return clean.text(value) if isinstance(value, str) else None


def _tags(sources: list[Any], clean: Redactor) -> dict[str, str]:
    """Later sources win: the proxy's own tags, the request's `metadata`, its headers."""
    found: dict[str, str] = {}
    for source in sources:
        for name, value in source.items() if isinstance(source, dict) else ():
            if isinstance(value, str | int | float | bool):
                found[clean.text(name)[:MAX_TAG]] = clean.text(str(value))[:MAX_TAG]
    return dict(list(found.items())[:MAX_TAGS])


# ---- how an exchange travels to the recorder: three lengths, what is known of it as JSON, two bodies -----------------

LENGTHS = struct.Struct(">III")


@dataclass(frozen=True)
class Frame:
    meta: dict[str, Any]
    request: bytes
    reply: bytes


def pack(meta: dict[str, Any], request: bytes, reply: bytes) -> bytes:
    head = json.dumps(meta).encode()
    return b"".join((LENGTHS.pack(len(head), len(request), len(reply)), head, request, reply))


def take(buffer: bytearray) -> Iterator[Frame]:
    """The whole frames at the beginning of a buffer, which are taken out of it."""
    at = 0
    while len(buffer) - at >= LENGTHS.size:
        sizes = LENGTHS.unpack_from(buffer, at)
        end = at + LENGTHS.size + sum(sizes)
        if len(buffer) < end:
            break
        first = at + LENGTHS.size
        second = first + sizes[0]
        third = second + sizes[1]
        yield Frame(json.loads(buffer[first:second]), bytes(buffer[second:third]), bytes(buffer[third:end]))
        at = end
    del buffer[:at]
