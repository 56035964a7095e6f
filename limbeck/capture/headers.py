"""Heads of requests and responses: what is passed on, what is refused, and what is read out of them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_plus, unquote_to_bytes

import h11

if TYPE_CHECKING:
    from collections.abc import Iterable

    from h11._headers import Headers as H11Headers

    from limbeck.capture.settings import CaptureUpstream

    Headers = list[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    }
)
"""RFC 9110, section 7.6.1: these belong to one connection."""

HEAD_BYTES = 64 * 2**10
"""Largest head of a request."""

OWN_PREFIX = b"/-/"
"""Paths that the proxy answers itself. No OpenAI-compatible endpoint begins so."""

TAG_HEADER = b"x-limbeck-tag-"
CONVERSATION_HEADER = b"x-limbeck-conversation"
ID_HEADERS = (b"x-request-id", b"x-client-request-id")
KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"proxy-authorization")
KEY_NAME = re.compile(r"key|token|secret|sig|auth|pass|code|session", re.IGNORECASE)
MIN_COOKIE = 16
"""Shorter values of cookies are settings, such as a language."""

RECORDED = (b"/chat/completions", b"/completions")
ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class Refusal(NamedTuple):
    """An answer of the proxy's own, in the shape of OpenAI's errors."""

    status: int
    code: str
    message: str

    @property
    def body(self) -> bytes:
        kind = "invalid_request_error" if self.status < 500 else "upstream_error"
        error = {"message": self.message, "type": kind, "param": None, "code": self.code}
        return json.dumps({"error": error}).encode()


def refusal(request: h11.Request, max_body: int) -> Refusal | None:
    """Why a request is not passed on, if it is not: what could mean one thing here and another one at the upstream."""
    names = [name for name, _ in request.headers]
    if len(request.target) + sum(len(name) + len(value) for name, value in request.headers) > HEAD_BYTES:
        return Refusal(431, "head_too_large", f"The request's head is above {HEAD_BYTES} bytes.")
    path = request.target.partition(b"?")[0]
    if not request.target.startswith(b"/"):
        return Refusal(400, "bad_target", "The request's target must be a path.")
    if b".." in re.split(rb"[/\\]", unquote_to_bytes(path)):
        return Refusal(400, "bad_target", "The request's path must not hold '..'.")
    if b"transfer-encoding" in names and b"content-length" in names:
        return Refusal(400, "bad_length", "The request has both Content-Length and Transfer-Encoding.")
    if names.count(b"host") > 1:
        return Refusal(400, "bad_host", "The request has several Host headers.")
    length = first(request.headers, b"content-length")
    if length and int(length) > max_body:
        return too_large(max_body)
    return None


def too_large(max_body: int) -> Refusal:
    return Refusal(413, "request_too_large", f"The request's body is above the limit of this proxy, {max_body} bytes.")


def request_for(request: h11.Request, upstream: CaptureUpstream) -> h11.Request:
    """The same request for the upstream: its host, its path before ours, without what was said to the proxy alone."""
    headers = passed_on(request.headers, {b"host", b"expect", CONVERSATION_HEADER})
    kept = [(name, value) for name, value in headers if not name.lower().startswith(TAG_HEADER)]
    if first(request.headers, b"transfer-encoding"):
        kept.append((b"Transfer-Encoding", b"chunked"))
    return h11.Request(
        method=request.method, target=upstream.path + request.target, headers=[(b"Host", upstream.authority), *kept]
    )


def response_for(response: h11.Response) -> h11.Response:
    """The same response for the client."""
    return h11.Response(
        status_code=response.status_code, headers=passed_on(response.headers, set()), reason=response.reason
    )


def passed_on(headers: H11Headers, without: set[bytes]) -> Headers:
    """Headers in their order and spelling, without those of one connection."""
    named = {one.strip().lower() for name, value in headers if name == b"connection" for one in value.split(b",")}
    # A client could name Content-Length here and so change where its body ends.
    left_out = HOP_BY_HOP | without | (named - {b"content-length", b"host", b"authorization"})
    return [(name, value) for name, value in headers.raw_items() if name.lower() not in left_out]


def first(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    return next((value for found, value in headers if found == name), None)


def is_recorded(request: h11.Request) -> bool:
    """Whether this is a request for completions, by method and the end of its path."""
    return request.method == b"POST" and request.target.partition(b"?")[0].endswith(RECORDED)


def secrets(request: h11.Request) -> list[str]:
    """The values by which this client proves who it is: of its headers whole and their last word (behind `Bearer`), of
    cookies and of query parameters named so, plain and decoded."""
    found = [value.decode("latin-1") for name, value in request.headers if name in KEY_HEADERS]
    found += [value.split(" ")[-1] for value in found]
    cookies = [value.decode("latin-1") for name, value in request.headers if name == b"cookie"]
    pairs = [part.strip().partition("=") for one in cookies for part in one.split(";")]
    found += [value for _, _, value in pairs if len(value) >= MIN_COOKIE]
    query = request.target.partition(b"?")[2].decode("latin-1")
    named = [value for name, _, value in (pair.partition("=") for pair in query.split("&")) if KEY_NAME.search(name)]
    return [*found, *named, *(unquote_plus(value) for value in named)]


def tags(request: h11.Request) -> dict[str, str]:
    """`x-limbeck-tag-NAME: VALUE` headers."""
    found = [(name[len(TAG_HEADER) :], value) for name, value in request.headers if name.startswith(TAG_HEADER)]
    return {name.decode("latin-1"): value.decode("utf-8", "replace") for name, value in found if name}


def named_id(request: h11.Request) -> str | None:
    """The id that the client gave its request, if it gave one."""
    for name in ID_HEADERS:
        value = (first(request.headers, name) or b"").decode("latin-1")
        if ID.fullmatch(value):
            return value
    return None
