"""What clients send and get, as OpenAI's API has it. What is not supported is refused, not ignored: such parameters are
listed with the values that change nothing, because clients send those."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

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
}
"""Parameters of OpenAI's that have no effect here, and what they ask for."""


class _RequestBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(_RequestBody):
    type: Literal["text"]
    text: Text


class Message(_RequestBody):
    """One turn. Contents are text, or a list of text parts. The last five are what clients copy from an answer."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=64)]
    refusal: None = None
    audio: None = None
    annotations: Nothing | None = None
    tool_calls: Nothing | None = None
    function_call: None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(_RequestBody):
    include_usage: bool = False


class TextFormat(_RequestBody):
    type: Literal["text"]


class Asked(_RequestBody):
    """What both endpoints know."""

    model: Annotated[Text, Field(min_length=1, max_length=256)]
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Seed | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    stop: Stop | Annotated[list[Stop], Field(min_length=1, max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[Text, Field(max_length=256)] | None = None
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
    messages: Annotated[list[Message], Field(min_length=1, max_length=65536)]
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
        | Annotated[list[Text], Field(min_length=1, max_length=65536)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=65536)]
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
