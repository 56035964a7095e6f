"""One request on its way through the server: what the gate knows of it, and what is told of it afterwards."""

from __future__ import annotations

import contextlib
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Scope

KEY = "limbeck.call"


@dataclass(eq=False)
class RequestContext:
    """`key` names who asks. Handlers fill in the second half; `held` is closed when the answer is sent or given up."""

    method: str
    path: str
    client: str
    deadline: float = 0.0
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    begun: float = field(default_factory=time.monotonic)
    key: str = ""
    held: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    status: int = 0
    code: str | None = None
    first_token: float | None = None
    model: str | None = None
    expert: str | None = None
    route: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt: Any = None
    reply: Any = None
    user: str | None = None
    cancelled: bool = False
    cut: bool = False

    def wrote(self) -> None:
        """A token is there: the first one is timed."""
        if self.first_token is None:
            self.first_token = time.monotonic() - self.begun


def call_of(request: Request) -> RequestContext:
    return request.scope[KEY]


def put(scope: Scope, call: RequestContext) -> None:
    scope[KEY] = call
