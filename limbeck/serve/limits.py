"""Limits that need memory of their own: how much a key may ask in a minute, and how deep JSON nests."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from limbeck.errors import RecipeError
from limbeck.serve.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MINUTE = 60.0
LEAST_KEY = 16
"""Characters of the shortest key."""
_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)


def json_depth(text: bytes, most: int) -> int:
    """How deep brackets of JSON nest, looked at without building anything; stops counting beyond `most`."""
    depth = deepest = 0
    for found in _STRUCTURE.finditer(text):
        first = text[found.start()]
        if first in b"[{":
            depth += 1
            deepest = max(deepest, depth)
            if deepest > most:
                break
        elif first in b"]}":
            depth = max(depth - 1, 0)
    return deepest


@dataclass(frozen=True)
class Keys:
    """Who may ask: names and the SHA-256 of their keys. Keys themselves are not kept."""

    digests: Mapping[str, bytes]

    @classmethod
    def read(cls, names: Mapping[str, str], environment: Mapping[str, str] | None = None) -> Keys:
        """`names` maps a name to its environment variable. Raises RecipeError where that is empty or no key."""
        environment = os.environ if environment is None else environment
        digests = {}
        for name, variable in names.items():
            key = environment.get(variable, "").strip()
            if not key:
                raise RecipeError(f"the environment variable {variable} is empty; keys.{name} reads its key from it.")
            if len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
                raise RecipeError(
                    f"the environment variable {variable} holds no key: a key has at least {LEAST_KEY} printable ASCII "
                    'characters and no spaces. python -c "import secrets; print(secrets.token_urlsafe(32))" makes one.'
                )
            digests[name] = hashlib.sha256(key.encode()).digest()
        if len(set(digests.values())) < len(digests):
            raise RecipeError("two names of `keys` have the same key; give each its own.")
        return cls(digests)

    def who(self, authorization: bytes | None) -> str | None:
        """The name whose key a `Bearer` header carries, "" where no keys are wanted; None is nobody. All keys are
        compared, in constant time each: how long it takes tells nothing."""
        if not self.digests:
            return ""
        scheme, _, key = (authorization or b"").partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        found = None
        for name, known in self.digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found if scheme.lower() == b"bearer" else None


@dataclass
class Bucket:
    """At most `per_minute` in a minute, refilled evenly; what is spent beyond is owed."""

    per_minute: float
    level: float = field(init=False)
    at: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.per_minute

    def spend(self, amount: float, now: float) -> None:
        self.level = min(self.per_minute, self.level + (now - self.at) * self.per_minute / MINUTE) - amount
        self.at = now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` is there; 0 when it is."""
        self.spend(0.0, now)
        return max(amount - self.level, 0.0) * MINUTE / self.per_minute


@dataclass
class Rates:
    """The requests and tokens of every key. None: without limit."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    clock: Callable[[], float] = time.monotonic
    _requests: dict[str, Bucket] = field(default_factory=dict)
    _tokens: dict[str, Bucket] = field(default_factory=dict)

    def admit(self, key: str) -> None:
        """Count one request. Raises ApiError 429 with the time to wait."""
        for limit, buckets, what in (
            (self.requests_per_minute, self._requests, "requests"),
            (self.tokens_per_minute, self._tokens, "tokens"),
        ):
            if limit is not None and (wait := self._bucket(buckets, key, limit).wait(1.0, self.clock())):
                raise ApiError(
                    429,
                    f"The limit of {limit:,} {what} a minute is reached. Try again in {wait:.1f} s.",
                    code="rate_limit_exceeded",
                    retry_after=wait,
                )
        if self.requests_per_minute is not None:
            self._bucket(self._requests, key, self.requests_per_minute).spend(1.0, self.clock())

    def used(self, key: str, tokens: int) -> None:
        if self.tokens_per_minute is not None:
            self._bucket(self._tokens, key, self.tokens_per_minute).spend(tokens, self.clock())

    def _bucket(self, buckets: dict[str, Bucket], key: str, limit: int) -> Bucket:
        if key not in buckets:
            buckets[key] = Bucket(limit, at=self.clock())
        return buckets[key]
