"""What an endpoint sent, as an answer or as the reason why it is none. Nothing is believed before it was looked at.

Servers send proxies' HTML with status 200, half a JSON document, or log-probs of another length than the tokens. All
of that is `Malformed`: the row is asked again and at last set aside, never stored. What is only said in other words is
read: contents as parts, log-probs in the shape of chats or of plain completions, token counts as floats. A count that
is missing or none stays unknown, and is charged at its worst.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from limbeck.endpoint.messages import Alternative, ApiChoice, ApiReply, ApiToken
from limbeck.errors import DataError
from limbeck.text.content import Spoken, spoken
from limbeck.text.finish import finish_reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.endpoint.messages import ApiRequest


SLACK = 1e-3
"""A log-prob may be above 0 by rounding."""

TOKEN_ID = re.compile(r"token_id:(\d+)")
"""How vLLM names tokens under `return_tokens_as_token_ids`."""


NEVER = -9999.0
"""The log-prob of what cannot be: some servers write this number, some null, some minus infinity."""

WORDLESS = ("content_filter", "refusal", "tool_calls")
"""How replies end that need not have log-probs."""


class Malformed(Exception):
    """The body is not an answer to what was asked. The message says what is wrong with it."""


def parse(body: bytes) -> Any:
    """JSON in UTF-8. NaN and the infinities are let through, as servers in Python write them: each number is looked at
    where it is used. Raises Malformed."""
    try:
        return json.loads(body.decode("utf-8-sig"))
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
    ordered = sorted((_object(choice, "a choice") for choice in choices), key=_index)  # stable: some count no index
    read = tuple(_choice(choice, ask) for choice in ordered)
    prompt, reply = read_usage(body.get("usage"), wrote=any(choice.text or choice.reasoning for choice in read))
    return ApiReply(
        read,
        read_text(body.get("model") or "", "model"),
        read_text(body.get("system_fingerprint") or "", "system_fingerprint"),
        prompt,
        reply,
        seconds,
    )


# ---- usage -----------------------------------------------------------------------------------------------------------


def read_usage(usage: Any, *, wrote: bool = True) -> tuple[int | None, int | None]:
    """Tokens of the prompt and of the reply that may be billed; None for what is not told, or is no count.

    A prompt of 0 tokens, and 0 tokens of a reply that says something, are counts of a server that does not count.
    Reasoning is a part of the reply by OpenAI's rule, and beside it by others': the total shows which, or that it is
    more than the reply. Where nothing shows, the larger count is taken.
    """
    told = usage if isinstance(usage, Mapping) else {}
    details = told.get("completion_tokens_details")
    prompt, reply, total = (
        next((count for name in names if (count := _count(told.get(name))) is not None), None)
        for names in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"), ("total_tokens",))
    )
    prompt, reply = prompt or None, None if wrote and not reply else reply
    hidden = [_count(each.get("reasoning_tokens")) for each in (details, told) if isinstance(each, Mapping)]
    thought = max((count for count in hidden if count), default=0)
    if reply is None and prompt is not None and total and total > prompt:
        reply = total - prompt
    if reply is None:
        return prompt, None
    reply = max(reply, reply + thought if thought > reply else 0, total - prompt if total and prompt else 0)
    return prompt, reply


def _count(value: Any) -> int | None:
    """Servers write counts as whole numbers, floats, texts, or not at all."""
    if isinstance(value, str):
        value = int(value) if value.isdecimal() and len(value) < 16 else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
        return None
    return math.ceil(value)


# ---- choices ---------------------------------------------------------------------------------------------------------


def _choice(choice: dict[str, Any], ask: ApiRequest) -> ApiChoice:
    reason = finish_reason(choice.get("finish_reason"))
    if reason == "error":
        raise Malformed(f"the finish_reason is {str(choice['finish_reason'])[:40]!r}: the endpoint broke off")
    said = _words(choice) if ask.prompt is None else Spoken(read_text(choice.get("text"), "text"), "", "")
    text = said.text or said.refusal
    if said.refusal and not said.text:
        reason = "refusal"
    elif ask.prompt is None and choice["message"].get("tool_calls"):
        reason = "tool_calls"  # some say that they stopped
    tokens = _tokens(choice, text, needed=bool(text) and reason not in WORDLESS) if ask.logprobs else None
    return ApiChoice(text, reason, tokens, said.reasoning)


def _words(choice: dict[str, Any]) -> Spoken:
    """What a chat's choice says. No content at all is an empty reply: the budget went into reasoning, or it was
    filtered away, or a tool is called."""
    try:
        said = spoken(_object(choice.get("message"), "message"))
    except DataError as error:
        raise Malformed(str(error).rstrip(".")) from None
    return Spoken(*(read_text(value, name) for name, value in said._asdict().items()))


def _index(choice: dict[str, Any]) -> int:
    return _count(choice.get("index")) or 0


# ---- tokens ----------------------------------------------------------------------------------------------------------


def _tokens(choice: dict[str, Any], text: str, *, needed: bool) -> tuple[ApiToken, ...] | None:
    """A choice's log-probs, in the shape of chats (objects under `content`) or of completions (lists side by side):
    which of them is sent does not depend on what was asked. None where there are none and none are `needed`."""
    told = choice.get("logprobs")
    if isinstance(told, dict) and isinstance(told.get("content"), list):
        told = told["content"]
    ids = choice.get("token_ids")
    if isinstance(told, list) and told:
        tokens = tuple(_token(_object(item, "a log-prob")) for item in told)
    elif isinstance(told, dict) and told.get("tokens"):
        tokens = _side_by_side(told)
        ids = told.get("token_ids") if ids is None else ids
    elif needed:
        raise Malformed("log-probs were asked for, and there are none")
    else:
        return None
    _check_text(tokens, text)
    for token in tokens:
        require_logp(token)
    return tokens if ids is None else _with_ids(tokens, ids)


def _token(item: dict[str, Any]) -> ApiToken:
    return ApiToken(*_alternative(item), _tops(item.get("top_logprobs")))


def _side_by_side(logprobs: dict[str, Any]) -> tuple[ApiToken, ...]:
    names = _list(logprobs["tokens"], "tokens")
    logps = _list(logprobs.get("token_logprobs"), "token_logprobs")
    tops = _list(logprobs.get("top_logprobs") or [None] * len(names), "top_logprobs")
    if not len(names) == len(logps) == len(tops):
        raise Malformed(f"{len(names)} tokens have {len(logps)} log-probs and {len(tops)} top_logprobs")
    own = (_alternative({"token": name, "logprob": logp}) for name, logp in zip(names, logps, strict=True))
    return tuple(ApiToken(*one, _tops(top)) for one, top in zip(own, tops, strict=True))


def _tops(told: Any) -> tuple[Alternative, ...]:
    """The most probable tokens of a position, the best first: objects in a list, or log-probs by their text."""
    if isinstance(told, dict):
        told = [{"token": token, "logprob": logp} for token, logp in told.items()]
    found = [_alternative(_object(top, "a top log-prob")) for top in _list(told or [], "top_logprobs")]
    return tuple(sorted(found, key=lambda token: -token.logp))


def _alternative(item: dict[str, Any]) -> Alternative:
    text = read_text(item.get("token"), "token")
    logp, spelled = read_logp(item.get("logprob"), text), item.get("bytes")
    if named := TOKEN_ID.fullmatch(text):
        return Alternative("", None, int(named[1]), logp)
    return Alternative(text, None if spelled is None else _bytes(spelled), None, logp)


def require_logp(token: ApiToken) -> None:
    """Raises Malformed for a position of which nothing is told: not its token's log-prob, nor any other's."""
    if max((token.logp, *(one.logp for one in token.top))) <= NEVER:
        raise Malformed(f"the log-prob of {token.text!r} is not told")


def read_logp(value: Any, token: str) -> float:
    """At most 0; NEVER for what cannot be. Raises Malformed for what is no log-prob."""
    if value is None or value == -math.inf:
        return NEVER
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= SLACK:
        raise Malformed(f"the log-prob of {token!r} is {str(value)[:40]!r}")
    return min(float(value), 0.0) if value > NEVER else NEVER


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


def _with_ids(tokens: tuple[ApiToken, ...], told: Any) -> tuple[ApiToken, ...]:
    """The ids that some servers send beside them: vLLM under `return_token_ids`, Together always."""
    ids = [_count(id) for id in _list(told, "token_ids")]
    if len(ids) != len(tokens) or None in ids:
        raise Malformed(f"{len(ids)} token_ids have {len(tokens)} log-probs")
    return tuple(ApiToken(t.text, t.bytes, id, t.logp, t.top) for t, id in zip(tokens, ids, strict=True))


# ---- types -----------------------------------------------------------------------------------------------------------


def _object(value: Any, what: str) -> dict[str, Any]:
    return value if isinstance(value, dict) else _wrong(value, what, "an object")


def _list(value: Any, what: str) -> list[Any]:
    return value if isinstance(value, list) else _wrong(value, what, "a list")


def read_text(value: Any, what: str) -> str:
    """A text that can be written: half a surrogate pair cannot."""
    if not isinstance(value, str):
        _wrong(value, what, "a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Malformed(f"{what} holds half a surrogate pair") from None
    return value


def _wrong(value: Any, what: str, wanted: str) -> NoReturn:
    raise Malformed(f"{what} is {str(value)[:40]!r} ({type(value).__name__}), not {wanted}")
