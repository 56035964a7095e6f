"""Log-probs of text that was given, and not written by the endpoint.

It is sent as token ids. vLLM's `prompt_logprobs` names ids too, so nothing is ambiguous. The older `echo` with
`logprobs` on completions names tokens by their text, and which ones they are has to be proven.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from limbeck.endpoint.messages import Alternative, ApiChoice, ApiReply, ApiToken
from limbeck.endpoint.parse import TOKEN_ID, Malformed, read_logp, read_text, read_usage, require_logp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from limbeck.endpoint.messages import ApiRequest
    from limbeck.recipe import OpenAITeacher

Key = TypeVar("Key")

SCORED = "scored"
"""The finish reason of text that was given and not written."""


def given_body(settings: OpenAITeacher, ask: ApiRequest) -> dict[str, Any]:
    """The request. One token is written besides, since servers refuse to write none; it is thrown away."""
    body: dict[str, Any] = {"model": settings.model, "prompt": list(ask.given), "temperature": 0, "max_tokens": 1}
    body |= {"echo": True, "logprobs": ask.logprobs} if ask.echo else {"prompt_logprobs": ask.logprobs}
    body |= settings.extra_body
    return {key: value for key, value in body.items() if value is not None}


def read_given(body: Any, ask: ApiRequest, seconds: float) -> ApiReply:
    """The tokens from `ask.first` on, each with the most probable ones in its place, as one choice.

    Raises Malformed.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise Malformed("the text was given once, and there is not one choice")
    tokens = (_echoed if ask.echo else _prompted)(choices[0], ask)
    choice = ApiChoice("", SCORED, tokens)
    model, print_ = (read_text(body.get(name) or "", name) for name in ("model", "system_fingerprint"))
    return ApiReply((choice,), model, print_, *read_usage(body.get("usage"), wrote=False), seconds)


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
        require_logp(tokens[-1])
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
        require_logp(tokens[-1])
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
    return read_logp(value.get("logprob") if isinstance(value, dict) else value, "a given token")


def _sorted(told: Mapping[Key, float]) -> list[tuple[Key, float]]:
    return sorted(told.items(), key=lambda pair: -pair[1])
