"""What a status other than 200 means: try again, give this row up, or stop the job.

A spent quota, a wrong key, an unknown model and a redirect are the same for every request: they end the job at once.
A moderated prompt is one prompt. Of a 403 or 451 that does not say which it is, nothing is concluded here: it is a
rejection with a doubt, and whoever asks finds out whether a harmless question is refused as well.
"""

from __future__ import annotations

import json
import math
import re
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
    """This request will never be answered; others may be. `billed`: its prompt may have been read, and charged for.
    `doubt` is what to tell should every other request be refused too; "" where it is this one alone."""

    kind: str  # context_length, content_filter, refused, invalid
    reason: str
    billed: bool = False
    doubt: str = ""


QUOTA = {
    "insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "account_deactivated", "quota_exceeded",
    "insufficient_credits", "payment_required", "exceeded_current_quota_error", "access_terminated",
}  # fmt: skip
FILTERED = {
    "content_filter", "content_policy_violation", "responsibleaipolicyviolation", "moderation_blocked",
    "invalid_prompt", "data_inspection_failed", "datainspectionfailed", "sensitive", "1301", "safety_check",
}  # fmt: skip
MODERATED = re.compile(
    r"flagged|moderat|content[ _-](?:filter|polic|management|exists risk|violat)|usage (?:polic|guideline)|"
    r"safety (?:system|check|filter)|(?:in|out)put sensitive|inappropriate|sensitive (?:content|words?|info)|"
    r"violates? (?:our|the) ",
    re.IGNORECASE,
)
"""Words by which providers say that it is this prompt that they refuse."""

LONG = re.compile(
    r"context[ _](?:length|window|size)|maximum context|prompt is too long|too many (?:input )?tokens|"
    r"input is too long|exceeds? .{0,40}(?:context|max(?:imum)? (?:number of |input )?tokens|token limit)",
    re.IGNORECASE,
)
SETTINGS = {
    "unsupported_parameter", "unsupported_value", "unknown_parameter", "invalid_api_key", "model_not_found",
    "api_key_invalid", "invalid_model", "authentication_error",
}  # fmt: skip
BAD_KEY = re.compile(r"api.?key (?:is )?(?:not valid|invalid|expired|not found)|invalid api.?key", re.IGNORECASE)
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
    if status in (400, 413, 422) and not facts.codes & SETTINGS and not BAD_KEY.search(facts.message):
        kind = _kind(facts)
        return RequestRejected(kind, found, billed=kind != "invalid")
    if status in (403, 451) and not facts.codes & SETTINGS and not BAD_KEY.search(facts.message):
        if _kind(facts) == "content_filter" or facts.moderated:
            return RequestRejected("content_filter", found, billed=True)
        return RequestRejected("refused", found, doubt=_everyone(where, found, status))
    if 300 <= status < 400:
        target = headers.get("location", "nowhere")
        raise TeacherError(
            f"{where} redirects to {target[:200]}. A key is sent to no other place than the recipe names; if that "
            "is the right one, set teacher.base_url to it."
        )
    raise TeacherError(_everyone(where, found, status))


def _everyone(where: str, found: str, status: int) -> str:
    advice = ADVICE.get(status, "Change the recipe as it says, then run the same command again.")
    return f"{where} refuses every request ({found}). {advice} What was answered is kept."


def hidden_error(body: Mapping[str, Any]) -> Any:
    """The error in a body that came with a good status; None where there is none. Some gateways send all errors so."""
    if body.get("error"):
        return body["error"]
    if body.get("object") == "error" or body.get("type") == "error":
        return body
    told = body.get("base_resp")  # MiniMax
    return told if isinstance(told, dict) and told.get("status_code") not in (0, None) else None


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
            except (TypeError, ValueError, OverflowError, IndexError):
                continue
        if math.isfinite(seconds):
            return max(seconds, 0.0)
    return None


@dataclass(frozen=True)
class _Facts:
    message: str
    code: str
    codes: frozenset[str]
    moderated: bool = False


def _facts(body: bytes) -> _Facts:
    """What an error body says, in any of the forms that servers use."""
    try:
        found: Any = json.loads(body.decode(errors="replace"))
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, list):  # Gemini
        found = next((one for one in found if isinstance(one, dict)), None)
    if isinstance(found, dict):
        found = found.get("error") or found.get("base_resp") or found
    if not isinstance(found, dict):
        text = found if isinstance(found, str) else body[:300].decode(errors="replace")
        return _Facts(" ".join(text.split())[:300] or "no explanation", "", frozenset())
    message = found.get("message") or found.get("detail") or found.get("status_msg") or found
    inner, more = found.get("innererror"), found.get("metadata")  # Azure's content filter; a router's moderation
    told = [found.get(key) for key in ("code", "type", "status")] + [
        inner.get("code") if isinstance(inner, dict) else None
    ]
    codes = [str(code).lower() for code in told if isinstance(code, str) and code]
    moderated = isinstance(more, dict) and bool({"reasons", "flagged_input"} & more.keys())
    return _Facts(_brief(message), codes[0] if codes else "", frozenset(codes), moderated)


def _brief(message: Any) -> str:
    try:
        return " ".join(str(message).split())[:300]
    except ValueError:  # a number of more digits than Python writes
        return "no explanation"


def _kind(facts: _Facts) -> str:
    if facts.codes & {"context_length_exceeded", "string_above_max_length"} or LONG.search(facts.message):
        return "context_length"
    if facts.codes & FILTERED or MODERATED.search(facts.message):
        return "content_filter"
    return "invalid"
