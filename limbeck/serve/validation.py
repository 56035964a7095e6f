"""What is wrong with a request's body, in a sentence that names the parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limbeck.serve.errors import ApiError, bad
from limbeck.serve.schemas import UNSUPPORTED, ChatRequest, CompletionRequest, Message, StreamOptions, TextPart

if TYPE_CHECKING:
    from collections.abc import Sequence

WORDS = frozenset(
    name for model in (ChatRequest, CompletionRequest, Message, TextPart, StreamOptions) for name in model.model_fields
)


def explain(errors: Sequence[Any]) -> ApiError:
    """The first problem of those that pydantic found. What the client sent is not repeated."""
    found = next((one for one in errors if one["type"] in ("missing", "extra_forbidden")), errors[0])
    place = found["loc"][1:] if found["loc"][:1] == ("body",) else found["loc"]
    if found["type"] == "json_invalid":
        return bad(f"The body is not valid JSON: {found.get('ctx', {}).get('error', 'syntax error')}.", code="bad_json")
    if not place:
        return bad("The body must be a JSON object, sent as application/json.", code="bad_json")
    param = _param(place, unknown=found["type"] == "extra_forbidden")
    if str(place[0]) in UNSUPPORTED:
        return bad(
            f"{place[0]} is not supported: models here do not do {UNSUPPORTED[str(place[0])]}. Leave it out.",
            str(place[0]),
            "unsupported_parameter",
        )
    if "content" in place and found["type"] in ("literal_error", "missing", "extra_forbidden"):
        param = param[: param.index("content") + len("content")]
        return bad(
            f"{param}: a content is text, or a list of parts {{type: 'text', text}}. Images, audio and files are not "
            "supported.",
            param,
            "unsupported_value",
        )
    if place[-1] in ("tool_calls", "tool_call_id", "function_call"):
        return bad(f"{param} is not supported: models here call no tools.", param, "unsupported_parameter")
    if found["type"] == "extra_forbidden":
        return bad(f"Unknown parameter: {param}.", param, "unknown_parameter")
    if found["type"] == "missing":
        return bad(f"{param} is missing.", param, "missing_required_parameter")
    return bad(f"{param}: {found['msg']}.", param, "invalid_value")


def _param(place: Sequence[Any], *, unknown: bool) -> str:
    """`messages[0].content` of pydantic's path, which names the members of unions as well."""
    shown = ""
    for index, part in enumerate(place):
        last = index == len(place) - 1
        if isinstance(part, int):
            shown += f"[{part}]"
        elif part in WORDS or index == 0 or (last and unknown):
            shown += f".{part}" if shown else str(part)
    return shown[:100]
