"""The recipe's sections on teachers: who is asked, and how it is reached."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field

from limbeck.config.renamed import Was
from limbeck.config.schema import AboveZero, Fraction, Positive, Section

URL = r"^https?://(\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?|[^/\s?#@\[\]\x00-\x20]+)(/[^\s?#\x00-\x20]*)?$"
"""Without user, query and fragment: a key in a URL would be seen in messages."""


class HfTeacher(Section):
    """A local causal language model: a hub id, a folder (safetensors), or a .gguf file."""

    kind: Literal["hf"] = "hf"
    is_local: ClassVar[bool] = True
    path: str = Field(description="hub id, folder, .gguf file, or `smollm2-135m` for the demo teacher")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="`auto` measures which is fastest on this machine"
    )
    trust_remote_code: bool = Field(
        default=False, description="run code that the model's authors ship; shown in the report"
    )
    licence: str | None = Field(
        default=None, description="licence of the teacher, for the model card; read from its card if absent"
    )


class GgufTeacher(HfTeacher):
    """A .gguf file, run in this process: weights are dequantized to `dtype`. For a llama.cpp server use kind openai."""

    kind: Literal["gguf"] = "gguf"  # type: ignore[assignment]
    path: Annotated[str, Field(pattern=r"\.gguf$")] = Field(description="a .gguf file")


class TextTeacher(Section):
    """A teacher whose replies are in the data already: no model is run. For published traces, captured traffic, or your
    own worked answers."""

    kind: Literal["text"] = "text"
    is_local: ClassVar[bool] = False
    name: str = Field(default="the author of the data", description="author of the replies, for the model card")
    licence: str | None = Field(default=None, description="licence or terms of the replies, for the model card")


class Prices(Section):
    """What the provider charges, from its price list."""

    input: Annotated[float, Field(ge=0.0)] = Field(description="price of a million prompt tokens")
    output: Annotated[float, Field(ge=0.0)] = Field(description="price of a million reply tokens, reasoning included")
    currency: str = Field(default="USD", description="name of the currency, for messages and reports")


class OpenAITeacher(Section):
    """A model behind an OpenAI-compatible endpoint, called through the official client (extra `api`)."""

    kind: Literal["openai"] = "openai"
    is_local: ClassVar[bool] = False
    base_url: Annotated[str, Field(pattern=URL)] = Field(
        default="https://api.openai.com/v1", description="URL of the endpoint; it usually ends in `/v1`"
    )
    model: Annotated[str, Field(min_length=1)] = Field(description="name of the model at the endpoint")
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = Field(
        default="OPENAI_API_KEY",
        description="environment variable that holds the API key; the key itself is never written; null sends none",
    )
    endpoint: Literal["chat", "completions"] = Field(
        default="chat", description="`completions` sends the rendered prompt as plain text, for base models"
    )
    system: str | None = Field(
        default=None,
        description="system prompt of every request, before that of the row where it has one; the student learns "
        "without it",
    )
    extra_body: dict[str, Any] = Field(
        default={}, description="extra keys of every request; null removes a key (`{seed: null}`)"
    )
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="name of the request key that limits a reply"
    )
    mode: Literal["live", "batch"] = Field(
        default="live",
        description="`batch` uses the provider's batches (`/files`, `/batches`): answers within a day, often at half "
        "the price (then give that in `prices`)",
    )
    batch_requests: Positive = Field(default=10000, description="maximum requests of one batch")
    batch_poll_seconds: AboveZero = Field(default=30.0, description="interval between two status requests for a batch")
    samples_per_request: Positive = Field(
        default=1, description="replies requested at once (`n` of a request), at most trace.mode.n"
    )
    concurrency: Positive = Field(
        default=16, description="maximum concurrent requests; lowered automatically while the endpoint is overloaded"
    )
    requests_per_minute: AboveZero | None = Field(default=None, description="rate limit of the account in requests")
    tokens_per_minute: AboveZero | None = Field(
        default=None, description="rate limit of the account in tokens, prompt and reply together"
    )
    connect_seconds: AboveZero = Field(default=10.0, description="timeout of a connection")
    timeout_seconds: AboveZero = Field(default=600.0, description="timeout of a whole reply")
    retry_minutes: AboveZero = Field(default=30.0, description="time limit for the retries of one request")
    malformed_tries: Positive = Field(default=3, description="requests of a row whose replies are malformed")
    max_failed: Fraction = Field(
        default=0.05,
        description="share of replies that failed, or that came and cannot be used, above which the job stops",
    )
    retry_failed: bool = Field(
        default=False, description="request replies once more that failed, or could not be used, in an earlier run"
    )
    on_change: Annotated[Literal["stop", "annotate"], Was((("mark", "annotate"),))] = Field(
        default="stop",
        description="when another model (or system_fingerprint) answers than at first: `annotate` goes on, and every "
        "trace names its model",
    )
    prices: Prices | None = Field(default=None, description="prices of tokens; null neither estimates nor limits costs")
    max_cost: AboveZero | None = Field(default=None, description="limit of the cost; the job ends before it exceeds it")
    terms_accepted: str | None = Field(
        default=None,
        description="reason why the provider's terms allow training on its replies, in a sentence, for the card",
    )
    licence: str | None = Field(default=None, description="licence or terms of the replies, for the model card")

    @property
    def place(self) -> str:
        """The endpoint without its port: a server that was started anew elsewhere on a machine is the same."""
        parts = urlsplit(self.base_url)
        return f"{parts.scheme}://{parts.hostname}{parts.path.rstrip('/')}"

    @property
    def identity(self) -> list[Any]:
        """All that decides what it answers, besides the question. How fast it is asked does not."""
        return [self.kind, self.place, self.model, self.endpoint, self.system, self.extra_body]


class VllmTeacher(OpenAITeacher):
    """A vLLM server. It has the keys of `openai`. Its log-probs name token ids, so they are exact, also of given text
    (trace.mode.kind score). Start it with `--max-logprobs` of at least trace.target.k."""

    kind: Literal["vllm"] = "vllm"  # type: ignore[assignment]
    base_url: Annotated[str, Field(pattern=URL)] = Field(
        default="http://127.0.0.1:8000/v1", description="URL of the server; it ends in `/v1`"
    )
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = Field(
        default=None, description="environment variable that holds the server's `--api-key`, where it has one"
    )


Teacher = HfTeacher | GgufTeacher | TextTeacher | OpenAITeacher | VllmTeacher


def name_of(teacher: Teacher) -> str:
    """The teacher's name for cards and reports."""
    if isinstance(teacher, OpenAITeacher):
        return f"{teacher.model} at {teacher.place}"
    return teacher.path if isinstance(teacher, HfTeacher) else teacher.name
