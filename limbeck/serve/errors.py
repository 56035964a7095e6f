"""What the server answers when it does not answer: OpenAI's error shape, with the status that clients know."""

from __future__ import annotations

import json
import math
from typing import Any

KINDS = {401: "authentication_error", 429: "rate_limit_error", **dict.fromkeys((500, 502, 503), "server_error")}


class ApiError(Exception):
    """A request that is refused. `param` is the parameter at fault, `code` a word for programs; `retry_after` seconds
    until it may work."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    @property
    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def encoded(self) -> bytes:
        return json.dumps(self.body).encode()

    @property
    def headers(self) -> dict[str, str]:
        found = {"www-authenticate": "Bearer"} if self.status == 401 else {}
        return found if self.retry_after is None else {**found, "retry-after": str(max(math.ceil(self.retry_after), 1))}


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request itself is wrong."""
    return ApiError(400, message, param=param, code=code)


def no_model(name: str, known: list[str]) -> ApiError:
    listed = ", ".join(known) or "none"
    return ApiError(
        404, f"There is no model {name[:80]!r}. Models here: {listed[:400]}.", param="model", code="model_not_found"
    )
