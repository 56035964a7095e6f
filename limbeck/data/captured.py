"""Captured exchanges as examples: which of them, whose replies, and each turn once."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.data.columns import check_text
from limbeck.errors import DataError
from limbeck.system.sealed import sealed_lines, unseal
from limbeck.text.content import spoken
from limbeck.text.encode import Example
from limbeck.text.finish import finish_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from limbeck.recipe import CapturedSource

SEGMENT = re.compile(r"capture-\d{5,}\.jsonl")
LINE_BYTES = 128 * 2**20
VERSION = 1


@dataclass(frozen=True)
class _CapturedTurn:
    """A reply with what was asked. `messages` is None for a plain completion, which has a `prompt`."""

    messages: list[dict[str, Any]] | None
    prompt: str | None
    reply: dict[str, Any]
    record: dict[str, Any]
    source: str


def find_segments(path: str) -> list[Path]:
    """The files of a capture, oldest first. Raises DataError when there are none."""
    folder = Path(path).expanduser()
    found = sorted(file for file in folder.glob("capture-*.jsonl") if SEGMENT.fullmatch(file.name))
    if not found:
        raise DataError(
            f"there is no capture at {path}; it must be the folder given to `limbeck capture --store`. The current "
            f"folder is {Path.cwd()}."
        )
    return sorted(found, key=lambda file: int(file.stem.split("-")[1]))


def read_captured(source: CapturedSource, refuse: Callable[[str], None]) -> Iterator[Example]:
    """The chosen replies in the order in which they were recorded. Damaged lines and exchanges that are no text go to
    `refuse`.

    Raises DataError when several models remain and none is named, and when nothing remains.
    """
    files = find_segments(source.path)
    models: Counter[str] = Counter()
    repeated: set[bytes] = set()
    for turn in _chosen(files, source, lambda _: None):
        models[str(turn.record["model"])] += 1
        repeated.update(_beginnings(turn.messages or []))
    _refuse_mixtures(models, source)
    for turn in _chosen(files, source, refuse):
        if turn.messages is None or _whole(turn) not in repeated:
            try:
                yield _example(turn, source)
            except DataError as error:
                refuse(str(error))


def _refuse_mixtures(models: Counter[str], source: CapturedSource) -> None:
    listed = ", ".join(f"{name} ({number:,})" for name, number in models.most_common())
    if len(models) > 1 and not source.models:
        raise DataError(
            f"the capture {source.path} holds replies of several models: {listed}. Name those to learn from: "
            "data.source.models. A student's own replies do not teach it anything."
        )
    if not models:
        raise DataError(
            f"the capture {source.path} holds no reply that data.source asks for. Look at its models, tags, "
            "finish_reasons, since and until."
        )


def _chosen(files: list[Path], source: CapturedSource, refuse: Callable[[str], None]) -> Iterator[_CapturedTurn]:
    """The replies that the recipe asks for, whatever they hold."""
    since, until = (moment(text) if text else None for text in (source.since, source.until))
    tags = [tuple(tag.split("=", 1)) for tag in source.tags]
    wanted = {finish_reason(reason) for reason in source.finish_reasons}
    for record, where in _records(files, refuse):
        time = moment(record["time"])
        names = {record["model"], record["model_asked"]}
        if (since and time < since) or (until and time >= until):
            continue
        if any(record["tags"].get(name) != value for name, value in tags):
            continue
        if (source.models and not names & set(source.models)) or names & set(source.exclude_models):
            continue
        for number, reply in enumerate(record["replies"]):
            if ending(reply) in wanted:
                place = where if len(record["replies"]) == 1 else f"{where}, reply {number}"
                yield _CapturedTurn(record.get("messages"), _prompt(record, reply), reply, record, place)


def ending(reply: Mapping[str, Any]) -> str:
    """Why a reply ended, in the words of `text.finish`; `cut` where it was broken off. A refusal is one, whatever the
    server said besides."""
    if reply.get("refusal") and not reply.get("content"):
        return "refusal"
    return finish_reason(reply.get("finish_reason"))


def moment(text: str) -> datetime:
    """A point in time; without a zone it is UTC. Raises ValueError."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _records(files: list[Path], refuse: Callable[[str], None]) -> Iterator[tuple[dict[str, Any], str]]:
    """Every whole line. Half a line at the end of a segment is what a kill leaves, or what is just being written."""
    for file in files:
        try:
            for number, line in enumerate(sealed_lines(file, LINE_BYTES), 1):
                where = f"{file}:{number}"
                try:
                    yield _record(line, where), where
                except DataError as error:
                    refuse(str(error))
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror or error}.") from error


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = unseal(line)
        if record["version"] != VERSION:
            raise DataError(
                f"{where}: the exchange is of version {record['version']}; this Limbeck reads {VERSION}. Update it."
            )
        moment(record["time"])
        whole = isinstance(record["tags"], dict) and all(isinstance(reply, dict) for reply in record["replies"])
        asked = record.get("messages")
        whole = whole and (asked is None or (isinstance(asked, list) and all(isinstance(one, dict) for one in asked)))
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: the line is damaged ({type(error).__name__}: {error}).") from error
    if not whole or "model" not in record or "model_asked" not in record:
        raise DataError(f"{where}: the line is no exchange of a capture.")
    return record


def _prompt(record: dict[str, Any], reply: dict[str, Any]) -> Any:
    """The prompt of a plain completion; of several prompts, the one that this choice belongs to."""
    prompt = record.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str):
        per_prompt = max(len(record["replies"]) // len(prompt), 1)
        index = reply.get("index")
        return prompt[min(index // per_prompt if isinstance(index, int) else 0, len(prompt) - 1)]
    return prompt


# ---- turns -----------------------------------------------------------------------------------------------------------


def _beginnings(messages: list[dict[str, Any]]) -> Iterator[bytes]:
    """A hash of every beginning of a conversation that ends in an assistant turn."""
    digest = hashlib.blake2b(digest_size=16)
    for message in messages:
        _add(digest, message)
        if message.get("role") == "assistant":
            yield digest.digest()


def _whole(turn: _CapturedTurn) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for message in [*(turn.messages or []), {**turn.reply, "role": "assistant"}]:
        _add(digest, message)
    return digest.digest()


def _add(digest: Any, message: dict[str, Any]) -> None:
    """By what a turn says, in whichever form: a client sends a reply back as a text or in parts, its calls with or
    without numbers."""
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(str(part.get("text", part)) if isinstance(part, dict) else str(part) for part in content)
    listed = message.get("tool_calls")
    calls = [call.get("function") for call in listed if isinstance(call, dict)] if isinstance(listed, list) else []
    called = [[call.get("name"), call.get("arguments")] for call in calls if isinstance(call, dict)]
    said = [message.get("role"), content, *([called] if called else [])]
    digest.update(json.dumps(said).encode() + b"\n")


def _example(turn: _CapturedTurn, source: CapturedSource) -> Example:
    """Raises DataError for what is no text."""
    topic = turn.record["tags"].get(source.topic, "") if source.topic else ""
    reply = _reply(turn, source)
    if turn.messages is None:
        if not isinstance(turn.prompt, str):
            raise DataError(f"{turn.source}: the prompt is token ids; only text can be learnt from.")
        check_text(turn.prompt, f"{turn.source}: the prompt")
        return Example(prompt=turn.prompt, completion=reply["content"] or "", topic=topic, source=turn.source)
    messages = [_message(message, turn.source) for message in turn.messages]
    return Example(messages=[*messages, reply], topic=topic, source=turn.source)


def _reply(turn: _CapturedTurn, source: CapturedSource) -> dict[str, Any]:
    try:
        said = spoken(turn.reply)
    except DataError as error:
        raise DataError(f"{turn.source}: {error}") from None
    content, calls = said.text or said.refusal, turn.reply.get("tool_calls")
    if not content and not calls:
        raise DataError(f"{turn.source}: the reply has no text.")
    if source.reasoning == "think" and said.reasoning and "</think>" not in content:
        content = f"<think>\n{said.reasoning.strip()}\n</think>\n\n{content}"
    check_text(content, f"{turn.source}: the reply")
    kept = {"role": "assistant", "content": content}
    return {**kept, "tool_calls": calls} if calls else kept


def _message(message: dict[str, Any], where: str) -> dict[str, Any]:
    """A turn with a text; `developer` is what newer APIs call `system`, which is the word that templates know."""
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{where}: a message holds something else than text (an image or a sound).")
        content = "\n".join(text for text in texts if text)
    if content is not None:
        check_text(str(content), f"{where}: a message")
    role = "system" if message.get("role") == "developer" else message.get("role")
    named = {name: message[name] for name in ("tool_calls", "tool_call_id", "name") if name in message}
    return {"role": role, "content": content, **named}
