"""The server's log: one JSON object a line. Prompts and replies are in it where the settings say so; keys never."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from limbeck.serve.middleware import RequestContext

QUIET = frozenset({"/health", "/metrics"})


@dataclass
class Log:
    """`write` gets one line, plain ASCII, without its end."""

    write: Callable[[str], None]
    prompts: bool = False

    def event(self, event: str, level: str = "info", **values: Any) -> None:
        now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
        found = {key: value for key, value in values.items() if value is not None}
        self.write(json.dumps({"time": now, "level": level, "event": event, **found}, default=str))

    def request(self, call: RequestContext, seconds: float) -> None:
        if call.path in QUIET and call.status < 400:
            return
        self.event(
            "request",
            "error" if call.status >= 500 else "info",
            id=call.id,
            method=call.method,
            path=call.path,
            status=call.status or 499,
            code=call.code,
            seconds=round(seconds, 4),
            first_token_seconds=None if call.first_token is None else round(call.first_token, 4),
            key=call.key or None,
            client=call.client or None,
            user=None if call.user is None else hashlib.sha256(call.user.encode()).hexdigest()[:12],
            model=call.model,
            expert=call.expert,
            route=call.route,
            prompt_tokens=call.prompt_tokens or None,
            completion_tokens=call.completion_tokens or None,
            cancelled=call.cancelled or None,
            **({"prompt": call.prompt, "reply": call.reply} if self.prompts else {}),
        )


class LogLines(logging.Handler):
    """What uvicorn and asyncio log, as such lines. Of an exception only its type and places are told: its text may
    hold what a client sent."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        found = record.exc_info[1] if record.exc_info else None
        steps = traceback.extract_tb(found.__traceback__) if found else []
        message = "an exception in the application" if found else str(record.msg)
        self._log.event(
            "server",
            record.levelname.lower(),
            message=message.strip(),
            exception=type(found).__name__ if found else None,
            places=[f"{one.filename}:{one.lineno} {one.name}" for one in steps] if found else None,
        )
