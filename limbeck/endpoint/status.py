"""What a status other than 200 means: try again, give this row up, or stop the job.

A spent quota, a wrong key, an unknown model and a redirect are the same for every request: they end the job at once.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

from limbeck.errors import TeacherError

if TYPE_CHECKING:
    from collections.abc import Mapping

Trouble = Literal["overload", "server", "connect", "reset", "timeout", "malformed"]


@dataclass(frozen=True)
class RetryLater:
    """It may work later. `after`: the endpoint wants at least so many seconds; `billed`: work may have been done."""

    trouble: Trouble
    reason: str
    after: float | None = None
    billed: bool = False


@dataclass(frozen=True)
class RequestRejected:
    """This request will never be answered; others may be."""

    kind: str  # context_length, content_filter, invalid
    reason: str


QUOTA = {
    "insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "account_deactivated", "quota_exceeded",
    "insufficient_credits", "payment_required", "exceeded_current_quota_error", "access_terminated",
}  # fmt: skip
FILTERED = {"content_filter", "content_policy_violation", "responsibleaipolicyviolation", "moderation_blocked"}
SETTINGS = {"unsupported_parameter", "unsupported_value", "unknown_parameter", "invalid_api_key", "model_not_found"}
ADVICE = {
    401: "Set the environment variable named by teacher.api_key_env to a key that is valid there.",
    402: "Pay the bill there, then run the same command again: it goes on where it stopped.",
    403: "Ask for access to the model there, or choose another teacher.model.",
    404: "Check teacher.model and teacher.base_url (it usually ends in /v1).",
    405: "Check teacher.base_url (it usually ends in /v1) and teacher.endpoint.",
}


def judge(status: int, headers: Mapping[str, str], body: bytes, where: str) -> RetryLater | RequestRejected:
    """Raises TeacherError for what no other request will be spared either; `where` names the endpoint."""
    facts = _facts(body)
    found = f"{status}{f' {facts.code}' if facts.code else ''}: {facts.message}"
    after = retry_after(headers)
    if status == 402 or (status in (400, 403, 429) and facts.codes & QUOTA):
        raise TeacherError(f"the quota or credit at {where} is spent ({found}). {ADVICE[402]}")
    if status in (429, 503, 529):
        return RetryLater("overload", found, after)
    if status in (408, 409, 425) or (status >= 500 and status not in (501, 505)):
        return RetryLater("server", found, after, billed=status in (500, 502, 504, 408))
    if status in (400, 413, 422) and not facts.codes & SETTINGS:
        return RequestRejected(_kind(facts), found)
    if 300 <= status < 400:
        target = headers.get("location", "nowhere")
        raise TeacherError(
            f"{where} redirects to {target[:200]}. A key is sent to no other place than the recipe names; if that "
            "is the right one, set teacher.base_url to it."
        )
    advice = ADVICE.get(status, "Change the recipe as it says, then run the same command again.")
    raise TeacherError(f"{where} refuses every request ({found}). {advice} What was answered is kept.")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks to wait: `retry-after-ms`, or `Retry-After` as seconds or as a date (RFC 9110)."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - time.time()
            except (TypeError, ValueError):
                continue
        if math.isfinite(seconds):
            return max(seconds, 0.0)
    return None


@dataclass(frozen=True)
class _Facts:
    message: str
    code: str
    codes: frozenset[str]


def _facts(body: bytes) -> _Facts:
    """What an error body says, in any of the forms that servers use."""
    try:
        found: Any = json.loads(body.decode(errors="replace"))
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        found = found.get("error") or found
    if not isinstance(found, dict):
        text = found if isinstance(found, str) else body[:300].decode(errors="replace")
        return _Facts(" ".join(text.split())[:300] or "no explanation", "", frozenset())
    message = found.get("message") or found.get("detail") or found
    codes = [str(found[key]).lower() for key in ("code", "type") if isinstance(found.get(key), str)]
    inner = found.get("innererror")  # Azure's content filter
    if isinstance(inner, dict) and isinstance(inner.get("code"), str):
        codes.append(inner["code"].lower())
    return _Facts(" ".join(str(message).split())[:300], codes[0] if codes else "", frozenset(codes))


def _kind(facts: _Facts) -> str:
    words = facts.message.lower()
    if "context_length_exceeded" in facts.codes or "context length" in words or "maximum context" in words:
        return "context_length"
    if facts.codes & FILTERED:
        return "content_filter"
    return "invalid"
