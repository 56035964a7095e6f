"""Limits that need memory of their own: how much a key may ask in a minute, and how deep JSON nests."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from limbeck.errors import RecipeError
from limbeck.serve.errors import ApiError
from limbeck.system.rate import Rate

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


class Rates:
    """The requests and tokens of every key: a minute's worth may come at once, and tokens are counted when they were
    used, so that a key may owe some. None: without limit."""

    def __init__(
        self,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits, self._clock = {"requests": requests_per_minute, "tokens": tokens_per_minute}, clock
        self._rates: dict[tuple[str, str], Rate] = {}

    def admit(self, key: str) -> None:
        """Count one request. Raises ApiError 429 with the time to wait."""
        for what, limit in self._limits.items():
            rate = self._rate(key, what)
            if rate is not None and (wait := rate.wait(1.0, self._clock())):
                raise ApiError(
                    429,
                    f"The limit of {limit:,} {what} a minute is reached. Try again in {wait:.1f} s.",
                    code="rate_limit_exceeded",
                    retry_after=wait,
                )
        self._spend(key, "requests", 1)

    def used(self, key: str, tokens: int) -> None:
        self._spend(key, "tokens", tokens)

    def _spend(self, key: str, what: str, amount: int) -> None:
        if (rate := self._rate(key, what)) is not None:
            rate.spend(amount, self._clock())

    def _rate(self, key: str, what: str) -> Rate | None:
        limit = self._limits[what]
        return None if limit is None else self._rates.setdefault((key, what), Rate(limit, MINUTE))
