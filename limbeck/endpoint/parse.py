"""What an endpoint sent, as an answer or as the reason why it is none. Nothing is believed before it was looked at.

Servers send proxies' HTML with status 200, half a JSON document, null for a text, NaN for a log-prob, or log-probs of
another length than the tokens. All of that is `Malformed`: the row is asked again and at last set aside, never stored.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from limbeck.endpoint.messages import Alternative, ApiChoice, ApiReply, ApiToken

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from limbeck.endpoint.messages import ApiRequest
    from limbeck.recipe import OpenAITeacher


SLACK = 1e-3
"""A log-prob may be above 0 by rounding."""

TOKEN_ID = re.compile(r"token_id:(\d+)")
"""How vLLM names tokens under `return_tokens_as_token_ids`."""


Key = TypeVar("Key")


class Malformed(Exception):
    """The body is not an answer to what was asked. The message says what is wrong with it."""


def parse(body: bytes) -> Any:
    """JSON, strictly: UTF-8, no NaN, no infinity. Raises Malformed."""
    try:
        return json.loads(body.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise Malformed(f"the body is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise Malformed("the body is nested too deeply") from None
    except ValueError as error:
        begin = " ".join(body[:60].decode(errors="replace").split())
        raise Malformed(f"the body is not JSON ({error}): {begin!r}") from None


def read_answer(found: Any, ask: ApiRequest, seconds: float) -> ApiReply:
    """The answer in a parsed body of chat completions (for a conversation) or completions (for a raw prompt).

    Fewer choices than were asked for are an answer: some servers know only one. Raises Malformed.
    """
    body = _object(found, "the body")
    choices = _list(body.get("choices"), "choices")
    if not 1 <= len(choices) <= ask.sampling.n:
        raise Malformed(f"it has {len(choices)} choices; {ask.sampling.n} were asked for")
    read = _chat_choice if ask.prompt is None else _text_choice
    ordered = sorted((_object(choice, "a choice") for choice in choices), key=_index)
    if len({_index(choice) for choice in ordered}) < len(ordered) and ask.sampling.n > 1:
        raise Malformed("two choices have one index")
    usage = _object(body.get("usage") or {}, "usage")
    return ApiReply(
        tuple(read(choice, ask) for choice in ordered),
        _text(body.get("model") or "", "model"),
        _text(body.get("system_fingerprint") or "", "system_fingerprint"),
        _count(usage.get("prompt_tokens"), "usage.prompt_tokens"),
        _count(usage.get("completion_tokens"), "usage.completion_tokens"),
        seconds,
    )


# ---- choices ---------------------------------------------------------------------------------------------------------


def _chat_choice(choice: dict[str, Any], ask: ApiRequest) -> ApiChoice:
    message = _object(choice.get("message"), "message")
    reason = _reason(choice)
    reasoning = _text(message.get("reasoning_content") or message.get("reasoning") or "", "reasoning_content")
    content = message.get("content")
    if content is None and isinstance(message.get("refusal"), str):
        content, reason = message["refusal"], "refusal"
    if content is None:
        if reason != "content_filter" and not reasoning:
            raise Malformed("the content is null")
        content = ""
    text = _text(content, "content")
    logprobs = choice.get("logprobs")
    found = None if logprobs is None else _object(logprobs, "logprobs").get("content")
    items = _wanted(found, ask, reason)
    tokens = None if items is None else _with_ids(_chat_tokens(items, text), choice)
    return ApiChoice(text, reason, tokens, reasoning)


def _text_choice(choice: dict[str, Any], ask: ApiRequest) -> ApiChoice:
    text = _text(choice.get("text"), "text")
    reason = _reason(choice)
    logprobs = choice.get("logprobs")
    found = None if logprobs is None else _object(logprobs, "logprobs")
    names = _wanted(found and found.get("tokens"), ask, reason)
    tokens = None if names is None else _with_ids(_text_tokens(found or {}, names, text), choice)
    return ApiChoice(text, reason, tokens)


def _reason(choice: dict[str, Any]) -> str:
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or not reason or reason == "error":
        raise Malformed(f"the finish_reason is {reason!r}")
    return reason


def _index(choice: dict[str, Any]) -> int:
    index = choice.get("index", 0)
    if not isinstance(index, int):
        raise Malformed(f"a choice has the index {index!r}")
    return index


def _wanted(tokens: Any, ask: ApiRequest, reason: str) -> list[Any] | None:
    """The list of tokens where log-probs were asked for. What was filtered away may have none."""
    if not ask.logprobs:
        return None
    if not tokens:
        if reason in ("content_filter", "refusal"):
            return None
        raise Malformed("log-probs were asked for, and there are none")
    return _list(tokens, "logprobs")


# ---- tokens ----------------------------------------------------------------------------------------------------------


def _chat_tokens(items: Sequence[Any], content: str) -> tuple[ApiToken, ...]:
    tokens = []
    for item in items:
        token = _object(item, "a log-prob")
        one = _alternative(token)
        tops = (_object(top, "a top log-prob") for top in _list(token.get("top_logprobs") or [], "top_logprobs"))
        tokens.append(ApiToken(*one, tuple(sorted(map(_alternative, tops), key=_by_logp))))
    _check_text(tokens, content)
    return tuple(tokens)


def _text_tokens(logprobs: dict[str, Any], names: Sequence[Any], text: str) -> tuple[ApiToken, ...]:
    logps = _list(logprobs.get("token_logprobs"), "token_logprobs")
    tops = _list(logprobs.get("top_logprobs") or [None] * len(names), "top_logprobs")
    if not len(names) == len(logps) == len(tops):
        raise Malformed(f"{len(names)} tokens have {len(logps)} log-probs and {len(tops)} top_logprobs")
    tokens = []
    for name, logp, top in zip(names, logps, tops, strict=True):
        one = _alternative({"token": name, "logprob": logp})
        others = [_alternative({"token": t, "logprob": p}) for t, p in _object(top or {}, "top_logprobs").items()]
        tokens.append(ApiToken(*one, tuple(sorted(others, key=_by_logp))))
    _check_text(tokens, text)
    return tuple(tokens)


def _by_logp(token: Alternative) -> float:
    return -token.logp


def _alternative(item: dict[str, Any]) -> Alternative:
    text, logp, spelled = _text(item.get("token"), "token"), item.get("logprob"), item.get("bytes")
    if isinstance(logp, bool) or not isinstance(logp, int | float) or not math.isfinite(logp) or logp > SLACK:
        raise Malformed(f"the log-prob of {text!r} is {logp!r}")
    if named := TOKEN_ID.fullmatch(text):
        return Alternative("", None, int(named[1]), min(float(logp), 0.0))
    if spelled is not None:
        spelled = _bytes(spelled)
    return Alternative(text, spelled, None, min(float(logp), 0.0))


def _bytes(spelled: Any) -> bytes:
    try:
        return bytes(spelled if isinstance(spelled, list) else None)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise Malformed(f"the bytes of a token are {str(spelled)[:40]}") from None


def _check_text(tokens: Sequence[ApiToken], text: str) -> None:
    """The tokens must spell the reply (perhaps within an end token or a stop string): else one of them is cut.

    Not told where tokens are named by id, or where the text shows that bytes were replaced.
    """
    if "\ufffd" in text or any(token.id is not None for token in tokens):
        return
    if all(token.bytes is not None for token in tokens):
        spelled, found = b"".join(token.bytes or b"" for token in tokens), text.encode()
    else:
        spelled, found = "".join(token.text for token in tokens), text
        if "\ufffd" in spelled:
            return
    if found not in spelled:  # type: ignore[operator]
        raise Malformed(f"its {len(tokens)} log-probs are not those of its text")


def _with_ids(tokens: tuple[ApiToken, ...], choice: dict[str, Any]) -> tuple[ApiToken, ...]:
    """The ids that vLLM sends beside them under `return_token_ids`."""
    ids = choice.get("token_ids")
    if ids is None:
        return tokens
    ids = [_count(id, "token_ids") for id in _list(ids, "token_ids")]
    if len(ids) != len(tokens):
        raise Malformed(f"{len(ids)} token_ids have {len(tokens)} log-probs")
    return tuple(ApiToken(t.text, t.bytes, id, t.logp, t.top) for t, id in zip(tokens, ids, strict=True))


# ---- types -----------------------------------------------------------------------------------------------------------


def _object(value: Any, what: str) -> dict[str, Any]:
    return value if isinstance(value, dict) else _wrong(value, what, "an object")


def _list(value: Any, what: str) -> list[Any]:
    return value if isinstance(value, list) else _wrong(value, what, "a list")


def _text(value: Any, what: str) -> str:
    """A text that can be written: half a surrogate pair cannot."""
    if not isinstance(value, str):
        _wrong(value, what, "a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Malformed(f"{what} holds half a surrogate pair") from None
    return value


def _count(value: Any, what: str) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    _wrong(value, what, "a count")


def _wrong(value: Any, what: str, wanted: str) -> NoReturn:
    raise Malformed(f"{what} is {str(value)[:40]!r} ({type(value).__name__}), not {wanted}")


def _refuse_constant(name: str) -> NoReturn:
    raise Malformed(f"the body holds {name}")


# ---- text that was given ---------------------------------------------------------------------------------------------
#
# It is sent as token ids. vLLM's `prompt_logprobs` names ids too, so nothing is ambiguous. The older `echo` with
# `logprobs` on completions names tokens by their text, and which ones they are has to be proven.

SCORED = "scored"
"""The finish reason of text that was given and not written."""


def given_body(settings: OpenAITeacher, ask: ApiRequest) -> dict[str, Any]:
    """The request. One token is written besides, since servers refuse to write none; it is thrown away."""
    body: dict[str, Any] = {"model": settings.model, "prompt": list(ask.given), "temperature": 0, "max_tokens": 1}
    body |= {"echo": True, "logprobs": ask.logprobs} if ask.echo else {"prompt_logprobs": ask.logprobs}
    body |= settings.extra_body
    return {key: value for key, value in body.items() if value is not None}


def read_given(body: Mapping[str, Any], ask: ApiRequest, seconds: float) -> ApiReply:
    """The tokens from `ask.first` on, each with the most probable ones in its place, as one choice.

    Raises Malformed.
    """
    choices = body.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise Malformed("the text was given once, and there is not one choice")
    tokens = (_echoed if ask.echo else _prompted)(choices[0], ask)
    usage: Any = body.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if isinstance(count, int) else None for count in counts)
    choice = ApiChoice("", SCORED, tokens)
    model, print_ = (str(body.get(name) or "") for name in ("model", "system_fingerprint"))
    return ApiReply((choice,), model, print_, prompt, completion, seconds)


def _prompted(choice: Mapping[str, Any], ask: ApiRequest) -> tuple[ApiToken, ...]:
    rows = choice.get("prompt_logprobs")
    if not isinstance(rows, list) or len(rows) != len(ask.given):
        found = f"{len(rows)} of them" if isinstance(rows, list) else "none"
        raise Malformed(f"prompt_logprobs of {len(ask.given)} tokens were asked for, and there are {found}")
    tokens = []
    for own, row in zip(ask.given[ask.first :], rows[ask.first :], strict=True):
        if not isinstance(row, dict):
            raise Malformed("a position has no prompt_logprobs")
        told = {_id(key): _logp(value) for key, value in row.items()}
        if own not in told:
            raise Malformed(f"the prompt_logprobs of token {own} do not tell its own")
        top = tuple(Alternative("", None, id, logp) for id, logp in _sorted(told) if id != own)
        tokens.append(ApiToken("", None, own, told[own], top))
    return tuple(tokens)


def _echoed(choice: Mapping[str, Any], ask: ApiRequest) -> tuple[ApiToken, ...]:
    found = choice.get("logprobs")
    names, logps, tops = (_echoed_list(found, name) for name in ("tokens", "token_logprobs", "top_logprobs"))
    if not len(names) == len(logps) == len(tops) or len(names) < len(ask.given):
        raise Malformed(f"{len(ask.given)} tokens were given, and {len(names)} come back")
    tokens = []
    for place in range(ask.first, len(ask.given)):
        top = tops[place] if isinstance(tops[place], dict) else {}
        text, own = _named(names[place])
        others = _sorted({name: _logp(value) for name, value in top.items() if name != names[place]})
        alternatives = tuple(Alternative(text, None, id, logp) for name, logp in others for text, id in [_named(name)])
        tokens.append(ApiToken(text, None, own, _logp(logps[place]), alternatives))
    return tuple(tokens)


def _echoed_list(logprobs: Any, name: str) -> list[Any]:
    found = logprobs.get(name) if isinstance(logprobs, dict) else None
    if not isinstance(found, list):
        raise Malformed("the text was to be echoed with log-probs, and there are none")
    return found


def _named(name: object) -> tuple[str, int | None]:
    """Text and id of a token, which vLLM names by id when it is asked to."""
    if not isinstance(name, str):
        raise Malformed(f"a token is {str(name)[:40]!r}, not a text")
    found = TOKEN_ID.fullmatch(name)
    return ("", int(found[1])) if found else (name, None)


def _id(key: object) -> int:
    if not isinstance(key, str) or not key.isdecimal():
        raise Malformed(f"a token id is {str(key)[:40]!r}")
    return int(key)


def _logp(value: object) -> float:
    found = value.get("logprob") if isinstance(value, dict) else value
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found) or found > SLACK:
        raise Malformed(f"a log-prob is {found!r}")
    return min(float(found), 0.0)


def _sorted(told: Mapping[Key, float]) -> list[tuple[Key, float]]:
    return sorted(told.items(), key=lambda pair: -pair[1])
