"""What clients send and get, as OpenAI's API has it. What is not supported is refused, not ignored: such parameters are
listed with the values that change nothing, because clients send those."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from limbeck.serve.errors import ApiError, bad

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_CHOICES = 128
MOST_TOP = 20


def _encodable(text: str) -> str:
    """JSON can hold half a character (a lone surrogate), which is no text."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half of a character, which is no text") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Stop = Annotated[Text, Field(min_length=1, max_length=256)]
Name = Annotated[str, Field(pattern=r"^[\w.@-]{1,64}$")]
"""Templates may write it into the prompt: nothing in it can be a control token."""
Nothing = Annotated[list[Any], Field(max_length=0)]
Zero = Annotated[float, Field(ge=0.0, le=0.0)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]

UNSUPPORTED = {
    "tools": "tool calls",
    "tool_choice": "tool calls",
    "parallel_tool_calls": "tool calls",
    "functions": "function calls",
    "function_call": "function calls",
    "response_format": "structured output",
    "logit_bias": "logit biases",
    "presence_penalty": "penalties",
    "frequency_penalty": "penalties",
    "suffix": "insertion",
    "best_of": "a best of several",
    "modalities": "anything but text",
    "audio": "audio",
    "prediction": "predicted outputs",
    "store": "stored completions",
    "metadata": "stored completions",
    "reasoning_effort": "a reasoning effort",
    "web_search_options": "web search",
    "service_tier": "service tiers",
    "verbosity": "a verbosity",
    "moderation": "moderation",
}
"""Parameters of OpenAI's that have no effect here, and what they ask for."""


class _RequestBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(_RequestBody):
    type: Literal["text"]
    text: Text


class Message(_RequestBody):
    """One turn. Contents are text, or a list of text parts. `name` is given to the template, which may not read it. The
    last five are what clients copy from an answer."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=64, fail_fast=True)]
    name: Name | None = None
    refusal: None = None
    audio: None = None
    annotations: Nothing | None = None
    tool_calls: Nothing | None = None
    function_call: None = None

    @property
    def turn(self) -> dict[str, str]:
        """As templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": text, **({} if self.name is None else {"name": self.name})}


class StreamOptions(_RequestBody):
    include_usage: bool = False


class TextFormat(_RequestBody):
    type: Literal["text"]


Mark = Annotated[Text, Field(max_length=256)]


class Asked(_RequestBody):
    """What both endpoints know. `safety_identifier` is the newer name of `user`; caches are this server's own affair,
    and what is said of them changes nothing."""

    model: Annotated[Text, Field(min_length=1, max_length=256)]
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Seed | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Mark | None = None
    safety_identifier: Mark | None = None
    prompt_cache_key: Mark | None = None
    prompt_cache_retention: Mark | None = None
    prompt_cache_options: Annotated[dict[str, Any], Field(max_length=16)] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Asked):
    messages: Annotated[list[Message], Field(min_length=1, max_length=65536, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none"] | None = None
    parallel_tool_calls: None = None
    functions: Nothing | None = None
    function_call: Literal["none"] | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None


class CompletionRequest(Asked):
    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=65536, fail_fast=True)]
        | Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
        | Annotated[
            list[Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]],
            Field(min_length=1, max_length=65536, fail_fast=True),
        ]
    )
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    echo: bool | None = None
    suffix: None = None
    best_of: Literal[1] | None = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """Each prompt: its text, or its token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt  # type: ignore[return-value]


# ---- answers (written by hand, for speed: these are their promise) ---------------------------------------------------


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Failure(BaseModel):
    error: ErrorBody


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Route(BaseModel):
    """Who answered, and why. `route`: pinned (a name was given), auto, fallback, cascade."""

    expert: str | None
    route: str
    confidence: float | None
    reason: str


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]


class ReplyMessage(BaseModel):
    role: Literal["assistant"]
    content: str


class ChatChoice(BaseModel):
    index: int
    message: ReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChatChoice]
    usage: Usage
    limbeck: Route


class Logprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[CompletionChoice]
    usage: Usage
    limbeck: Route


class ModelObject(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(BaseModel):
    object: Literal["list"]
    data: list[ModelObject]


class Health(BaseModel):
    status: Literal["ok", "draining"]


WORDS = frozenset(
    name for model in (ChatRequest, CompletionRequest, Message, TextPart, StreamOptions) for name in model.model_fields
)


def explain(errors: Sequence[Any]) -> ApiError:
    """The first problem of those that pydantic found. What the client sent is not repeated."""
    clear = next((one for one in errors if one["type"] in ("missing", "extra_forbidden")), None)
    members = [one for one in errors if one["loc"][:2] == errors[0]["loc"][:2]]  # of a union, each with its own problem
    found = clear or max(members, key=lambda one: (not one["type"].endswith("_type"), len(one["loc"])))
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
