"""Why no answer came at all: what broke, in the words of whatever broke first."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

from limbeck.endpoint.status import RetryLater
from limbeck.errors import TeacherError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def network_errors() -> tuple[type[Exception], ...]:
    """What the client raises when no whole answer came; a function, because the client is optional."""
    import httpx2
    import openai

    return (openai.APIConnectionError, httpx2.HTTPError, httpx2.StreamError, OSError)


def judge_network(error: Exception, where: str, redact: Callable[[str], str]) -> RetryLater:
    """Raises TeacherError for a certificate that cannot be trusted, which no other request is spared."""
    import httpx2
    import openai

    causes = list(_causes(error))
    kinds = tuple(type(cause) for cause in causes)
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise TeacherError(
                redact(f"the certificate of {where} cannot be trusted ({cause.verify_message}). ")
                + "Check teacher.base_url, the clock, and the machine's certificates; nothing was sent."
            ) from None
    said = redact(next((text for cause in reversed(causes) if (text := str(cause))), kinds[0].__name__))
    if any(issubclass(kind, socket.gaierror) for kind in kinds):
        return RetryLater("connect", f"the host name is unknown ({said})")
    unconnected = any(issubclass(kind, httpx2.ConnectError | httpx2.ConnectTimeout) for kind in kinds)
    if unconnected and any(issubclass(kind, ssl.SSLError) for kind in kinds):
        return RetryLater("connect", f"no TLS connection ({said}); is it https there?")
    if unconnected or any(issubclass(kind, httpx2.PoolTimeout | httpx2.ProxyError) for kind in kinds):
        return RetryLater("connect", f"no connection ({said})")
    if any(issubclass(kind, openai.APITimeoutError | httpx2.TimeoutException) for kind in kinds):
        return RetryLater("timeout", f"nothing came in time ({said})", billed=True)
    if httpx2.DecodingError in kinds:
        return RetryLater("malformed", f"the body cannot be decompressed ({said})", billed=True)
    return RetryLater("reset", f"the connection broke off ({said})", billed=True)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, as far as it is about the network. What else was being handled then (an
    async library asks for a loop, and there is none) is not its cause."""
    known, seen = (*network_errors(), ssl.SSLError), set[int]()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, known):
            yield cause
        # A group has one error for each address of the host; `from None`, with which libraries raise, hides the reason.
        behind = cause.__cause__ or cause.__context__
        cause = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else behind
