"""What a capture proxy is told: where traffic goes, what is kept of it, and how much."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from limbeck.errors import CaptureError
from limbeck.system.net import is_loopback
from limbeck.text.redact import make_redactor

if TYPE_CHECKING:
    from pathlib import Path

MIB = 2**20


@dataclass(frozen=True)
class CaptureSettings:
    """Checked when made: raises CaptureError.

    `sample` is the share of conversations that are kept; `redact` names built-in rules or NAME=REGEX; `tags` are put on
    every exchange; `max_bytes` is the most the store may hold. Bodies above `max_body` are refused with 413; requests
    above `keep_request` and replies above `keep_reply` pass and are not recorded. `timeout`: most seconds without a
    byte from either side. `max_pending`: bytes that may wait for the recorder.
    """

    upstream: str
    store: Path
    host: str = "127.0.0.1"
    port: int = 8100
    allow_remote: bool = False
    sample: float = 1.0
    redact: tuple[str, ...] = ("all",)
    tags: dict[str, str] = field(default_factory=dict)
    max_bytes: int | None = None
    max_body: int = 64 * MIB
    keep_request: int = 8 * MIB
    keep_reply: int = 16 * MIB
    segment_bytes: int = 64 * MIB
    max_pending: int = 64 * MIB
    timeout: float = 600.0
    connect_timeout: float = 10.0
    retry_seconds: float = 5.0

    def __post_init__(self) -> None:
        parse_upstream(self.upstream)
        make_redactor(self.redact)
        if not 0.0 < self.sample <= 1.0:
            raise CaptureError(f"--sample is {self.sample:g}; it is a share of the traffic, above 0 and at most 1.")
        if not self.allow_remote and not is_loopback(self.host):
            raise CaptureError(
                f"--host is {self.host}, which other machines can reach, and whoever reaches the proxy reaches the "
                "upstream through it. Use 127.0.0.1, or say that it is meant with --allow-remote."
            )
        if self.max_bytes is not None and self.max_bytes < 1:
            raise CaptureError(f"--max-bytes is {self.max_bytes}; it must be at least 1.")


@dataclass(frozen=True)
class CaptureUpstream:
    """Where requests go. `path` is put before every request's path; `authority` is the Host header."""

    tls: bool
    host: str
    port: int
    path: bytes
    authority: bytes


def parse_upstream(url: str) -> CaptureUpstream:
    """The parts of an http(s) URL. `/v1` at its end is dropped, because clients' paths begin with it. Raises
    CaptureError for anything but scheme, host, port and path: a URL with a password would be seen in a process list."""
    advice = "Give it as https://HOST, https://HOST/v1 or http://HOST:PORT."
    try:
        parts = urlsplit(url)
        port = parts.port
        authority = parts.netloc.encode("ascii")
    except ValueError as error:
        raise CaptureError(f"--upstream cannot be read ({error}). {advice}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CaptureError(f"--upstream has the scheme {parts.scheme!r}; allowed are http and https. {advice}")
    if "@" in parts.netloc:
        raise CaptureError(f"--upstream holds a user or password. Clients send their own keys. {advice}")
    if parts.query or parts.fragment or any(not 32 < ord(letter) < 127 for letter in url):
        raise CaptureError(f"--upstream has a query, a fragment, or characters that a URL cannot have. {advice}")
    path = parts.path.rstrip("/").removesuffix("/v1")
    tls = parts.scheme == "https"
    return CaptureUpstream(tls, parts.hostname, port or (443 if tls else 80), path.encode(), authority)
