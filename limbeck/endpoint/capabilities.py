"""What an endpoint was seen to do: the record that a probe leaves, part of the identity of every store made with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from limbeck.errors import TeacherError
from limbeck.system.atomic import fingerprint

VERSION = 1
STEADY = 0.05
"""Nats by which the log-probs of one request, sent again, may differ: half-precision kernels do by a few thousandths,
another model or quantisation by far more."""


@dataclass(frozen=True)
class Capabilities:
    """Seen, not promised: a parameter counts when the answer shows its effect.

    `logprobs` are the alternatives told at each position (0: none, whatever was asked for). `raw`: log-probs do not
    depend on the sampling temperature. `ends_told`: also the token that ends a reply has them. `tokens`: whether the
    endpoint's tokens are ours, byte for byte, `tokens_why` what shows it; `prompt` the same of its rendered prompt.
    `spread` is the largest difference, in nats, between log-probs of one greedy request sent several times. None:
    nothing was to be seen (no reply ended, no log-probs to compare). `strange_ends` are finish reasons in words that
    nobody knows.
    """

    model: str
    fingerprints: tuple[str, ...]
    endpoint: Literal["chat", "completions"]
    logprobs: int
    raw: bool | None
    ends_told: bool | None
    tokens: Literal["agree", "differ", "unknown"]
    tokens_why: str
    prompt: Literal["agree", "differ", "unknown"]
    spread: float | None
    same_text: bool
    samples: bool
    n: bool
    seed: bool
    stop: bool | None
    json_schema: bool
    refuses_unknown_model: bool
    token_ids: bool
    completions: bool
    echo: bool
    token_prompts: bool
    prompt_logprobs: bool
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    version: int = VERSION
    strange_ends: tuple[str, ...] = ()

    @property
    def steady(self) -> bool:
        """Whether the replicas behind the endpoint are one model."""
        return len(self.fingerprints) <= 1 and (self.spread is None or self.spread <= STEADY)

    @property
    def scores(self) -> bool:
        """Whether it tells log-probs of given token ids."""
        return self.tokens == "agree" and self.token_prompts and (self.prompt_logprobs or self.echo)

    @property
    def identity(self) -> str:
        """16 hex digits over what stored traces depend on: not over what it cost to find out, nor over what a second
        look may find a little different."""
        left_out = (
            "requests",
            "prompt_tokens",
            "completion_tokens",
            "spread",
            "same_text",
            "tokens_why",
            "strange_ends",
        )
        return fingerprint({name: value for name, value in asdict(self).items() if name not in left_out})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Capabilities:
        """Raises TeacherError for a record of another version, or none."""
        names = {each.name for each in fields(cls)}
        known = isinstance(value, dict) and set(value) | {"strange_ends"} == names  # older records lack it
        if not known or value["version"] != VERSION:
            raise TeacherError(
                "the record of what the endpoint can do is damaged or of another version; delete it, and the endpoint "
                "is probed again."
            )
        lists = {name: tuple(value.get(name, ())) for name in ("fingerprints", "strange_ends")}
        return cls(**{**value, **lists})
