"""What is asked of an endpoint and what it answers: plain facts, without the client, and their form as JSON lines.

An answer keeps all that was paid for: text, reasoning, why each choice ended, log-probs with bytes and ids where the
endpoint tells them, who answered, and what it cost in tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from limbeck.text.finish import finish_reason
from limbeck.types import Sampling

if TYPE_CHECKING:
    from collections.abc import Mapping


class Alternative(NamedTuple):
    """One of the most probable tokens at a position. `logp` in nats; `bytes` and `id` where the endpoint tells them."""

    text: str
    bytes: bytes | None
    id: int | None
    logp: float


@dataclass(frozen=True)
class ApiToken:
    """One token of a reply, as the endpoint cut it, and the most probable ones in its place, the most probable first.

    `text` may hold replacement characters where a token is part of a character; `bytes` then are the truth.
    """

    text: str
    bytes: bytes | None
    id: int | None
    logp: float
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True)
class ApiChoice:
    """One reply. `finish_reason` in our words (`text.finish`), or the endpoint's own where it is none of them; `tokens`
    None without log-probs; `reasoning` what a reasoning endpoint told apart from the reply."""

    text: str
    finish_reason: str
    tokens: tuple[ApiToken, ...] | None = None
    reasoning: str = ""


@dataclass(frozen=True)
class ApiReply:
    """What came back for one request. Token counts are the endpoint's own, reasoning included, None where it told none;
    `seconds` from sending to the last byte."""

    choices: tuple[ApiChoice, ...]
    model: str
    system_fingerprint: str
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float


@dataclass(frozen=True)
class ApiRequest:
    """One request: a conversation (`messages`, each with role and content) or a raw `prompt`, never both.

    `sampling.n` choices are asked for; `logprobs` most probable tokens per position (0 asks for no log-probs).

    With `given` token ids nothing is to be written: log-probs of these tokens are asked for, from place `first` on;
    `echo` by the older way.
    """

    messages: tuple[Mapping[str, Any], ...] = ()
    prompt: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    logprobs: int = 0
    seed: int | None = None
    given: tuple[int, ...] = ()
    first: int = 1
    echo: bool = False


# ---- JSON ------------------------------------------------------------------------------------------------------------


def answer_to_json(answer: ApiReply) -> dict[str, Any]:
    """A form that `json.dumps` takes; `answer_from_json` gives back an equal answer."""
    return {
        "choices": [_choice_to_json(choice) for choice in answer.choices],
        "model": answer.model,
        "system_fingerprint": answer.system_fingerprint,
        "usage": [answer.prompt_tokens, answer.completion_tokens],
        "seconds": answer.seconds,
    }


def answer_from_json(value: Mapping[str, Any]) -> ApiReply:
    """Raises KeyError, TypeError or ValueError for what `answer_to_json` did not make."""
    choices, (prompt, completion) = tuple(map(_choice_from_json, value["choices"])), value["usage"]
    return ApiReply(choices, value["model"], value["system_fingerprint"], prompt, completion, value["seconds"])


def _choice_to_json(choice: ApiChoice) -> dict[str, Any]:
    found: dict[str, Any] = {"text": choice.text, "finish_reason": choice.finish_reason}
    if choice.reasoning:
        found["reasoning"] = choice.reasoning
    if choice.tokens is not None:
        found["tokens"] = [[*_spelling(token), [list(_spelling(one)) for one in token.top]] for token in choice.tokens]
    return found


def _choice_from_json(value: Mapping[str, Any]) -> ApiChoice:
    tokens = value.get("tokens")
    if tokens is not None:
        tokens = tuple(ApiToken(*_read(token[:4]), tuple(_read(one) for one in token[4])) for token in tokens)
    return ApiChoice(value["text"], finish_reason(value["finish_reason"]), tokens, value.get("reasoning", ""))


def _spelling(token: ApiToken | Alternative) -> tuple[str, str | bool | None, int | None, float]:
    """Text, bytes, id, log-prob. Bytes are nearly always the text's own, which is written as true; else hex digits."""
    own = token.bytes is not None and token.bytes == token.text.encode(errors="surrogatepass")
    spelled = None if token.bytes is None else True if own else token.bytes.hex()
    return token.text, spelled, token.id, token.logp


def _read(spelling: list[Any]) -> Alternative:
    text, spelled, id, logp = spelling
    if spelled is True:
        return Alternative(text, text.encode(errors="surrogatepass"), id, logp)
    return Alternative(text, None if spelled is None else bytes.fromhex(spelled), id, logp)
