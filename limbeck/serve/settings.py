"""What a server is told: addresses, keys, memory, limits, and where the teacher is. Set like a recipe's keys, or from a
YAML file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from limbeck.config.load import validate
from limbeck.config.overrides import apply_overrides
from limbeck.config.schema import Fraction, Positive, Section
from limbeck.config.yaml import Node, read_yaml
from limbeck.errors import RecipeError
from limbeck.system.net import is_loopback
from limbeck.system.units import num_bytes, size

if TYPE_CHECKING:
    from collections.abc import Sequence

Seconds = Annotated[float, Field(gt=0.0)]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Url = Annotated[str, Field(pattern=r"^https?://[^/\s?#@\\]+(/[^\s?#@\\]*)?$")]
Bytes = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?\s*[kmgtKMGT]?(i?[bB])?$")]  # units.num_bytes

SEQUENCES = 2**30  # bytes of keys and values where the machine's memory is not known
AUTO = "auto"
"""The model name that lets the router choose."""


class UpstreamPrices(Section):
    """What the upstream costs, in one currency, per million tokens."""

    input: Annotated[float, Field(ge=0.0)] = Field(description="prompt tokens")
    output: Annotated[float, Field(ge=0.0)] = Field(description="reply tokens")


class Upstream(Section):
    """The teacher behind an OpenAI-compatible endpoint: what is out of scope goes there."""

    url: Url = Field(description="where the endpoint is; it usually ends in `/v1`")
    model: Annotated[str, Field(min_length=1, max_length=200)] = Field(description="name of the model there, and here")
    api_key_env: EnvName | None = Field(default=None, description="environment variable that holds the key")
    prices: UpstreamPrices | None = Field(default=None, description="what it costs; without them no cost is shown")
    connect_seconds: Seconds = Field(default=5.0, description="longest wait for a connection")
    read_seconds: Seconds = Field(default=120.0, description="longest wait for the next bytes of an answer")


class Routing(Section):
    """What `model: auto` does."""

    fallback: Literal["upstream", "refuse"] | None = Field(
        default=None,
        description="what becomes of a prompt that is out of every expert's scope; null: the upstream where there is "
        "one, else it is refused (404, `out_of_scope`)",
    )
    cascade: bool = Field(
        default=False,
        description="the expert writes its reply first, whole, and the upstream is asked where it is probably wrong",
    )
    cascade_threshold: Fraction | None = Field(
        default=None, description="least probability that the expert's reply is right; null: as the router was fitted"
    )


class ServeLimits(Section):
    """What one request, one key and all of them together may take."""

    max_body: Bytes = Field(default="1M", description="largest request body")
    max_depth: Positive = Field(default=32, description="deepest nesting of a request's JSON")
    max_messages: Positive = Field(default=256, description="most messages of a conversation")
    max_prompts: Positive = Field(default=64, description="most prompts of one request")
    max_tokens: Positive = Field(default=4096, description="longest reply in tokens")
    max_n: Positive = Field(default=8, description="most replies to one prompt")
    max_in_flight: Positive = Field(default=128, description="most requests under way or waiting; more get 503")
    max_connections: Positive = Field(default=4096, description="most open connections")
    request_seconds: Seconds = Field(default=600.0, description="longest time of one request")
    open_seconds: Seconds = Field(default=600.0, description="longest time that opening an expert may take")
    header_seconds: Seconds = Field(default=30.0, description="longest time that a request's head may take to arrive")
    body_seconds: Seconds = Field(default=30.0, description="longest time that a request's body may take to arrive")
    write_seconds: Seconds = Field(default=60.0, description="longest time without the client reading its answer")
    idle_seconds: Seconds = Field(default=75.0, description="idle connections are closed after so long")
    requests_per_minute: Positive | None = Field(default=None, description="of one key")
    tokens_per_minute: Positive | None = Field(default=None, description="of one key, prompt and reply together")


class Serving(Section):
    """The settings of `limbeck serve`."""

    called: ClassVar[str] = "the settings"

    host: str = Field(default="127.0.0.1", description="address to listen on; any other than loopback needs `keys`")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=8000, description="port; 0 takes a free one")
    keys: dict[str, EnvName] = Field(
        default={}, description="who may ask: a name, and the environment variable that holds its key"
    )
    memory_budget: Bytes | None = Field(
        default=None, description="memory of all open experts, such as 4G; null: half of the machine's, or of its GPU's"
    )
    sequence_memory: Bytes | None = Field(
        default=None,
        description="of that, most for the keys and values of one expert's replies, and contexts are cut to what fits; "
        "null: an eighth",
    )
    ttl_seconds: Seconds | None = Field(
        default=1800.0, description="idle experts are closed after so long; null: never"
    )
    preload: tuple[str, ...] = Field(default=(), description="experts that are opened at the start")
    rescan_seconds: Seconds = Field(default=10.0, description="how often the registry is looked at for new experts")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="precision of experts in safetensors: auto is what runs fastest here"
    )
    slots: Positive = Field(default=8, description="replies that one expert writes at once")
    waiting: Positive = Field(default=64, description="replies that may wait for one expert; more get 503")
    upstream: Upstream | None = Field(default=None, description="the teacher")
    backends: dict[str, Url] = Field(
        default={}, description="experts that a vLLM or llama.cpp server runs under their own name: name and URL"
    )
    routing: Routing = Field(default=Routing())
    limits: ServeLimits = Field(default=ServeLimits())
    drain_seconds: Seconds = Field(default=30.0, description="after SIGTERM, longest wait for answers under way")
    log_prompts: bool = Field(default=False, description="write prompts and replies into the log")

    def bytes_of(self, memory: int | None) -> tuple[int | None, int]:
        """What all open experts may take of a device with so much `memory` (None: it does not say, and there is no
        limit then), and of that the keys and values of one expert's replies."""
        half = None if memory is None else memory // 2
        budget = half if self.memory_budget is None else num_bytes(self.memory_budget)
        if self.sequence_memory is not None:
            return budget, num_bytes(self.sequence_memory)
        return budget, SEQUENCES if budget is None else budget // 8


def load_serving(path: str | Path | None, overrides: Sequence[str] = ()) -> Serving:
    """The settings in a YAML file (none: the defaults) with `a.b=value` overrides. Raises RecipeError: what was found,
    what is allowed; also for settings that contradict one another or have no effect."""
    written = Node({}, "the settings") if path is None else read_yaml(Path(path))
    if written.value is None:
        written = Node({}, written.origin)
    settings = validate(Serving, apply_overrides(Serving, written, overrides))
    if problems := contradictions(settings):
        raise RecipeError("\n".join(problems))
    return settings


def contradictions(settings: Serving) -> list[str]:
    """Sentences: what is wrong, and what to do."""
    found = []
    if not settings.keys and not is_loopback(settings.host):
        found.append(
            f"host is {settings.host}, which other machines can reach, and there are no keys. Name at least one: "
            "keys='{app: LIMBECK_KEY}', with the key in that environment variable; or listen on 127.0.0.1."
        )
    if bad := [name for name in settings.keys if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name)]:
        found.append(f"keys has the name {bad[0]!r}; a name is 1 to 64 letters, digits, dots, dashes and underscores.")
    budget, sequences = settings.bytes_of(None)
    if budget is not None and sequences >= budget:
        found.append(
            f"sequence_memory is {settings.sequence_memory}, which leaves no room for an expert within a memory_budget "
            f"of {size(budget)}. Lower the one or raise the other."
        )
    routing = settings.routing
    if settings.upstream is None and (routing.fallback == "upstream" or routing.cascade):
        key = "routing.cascade" if routing.cascade else "routing.fallback"
        found.append(f"{key} asks the upstream, and there is none. Set upstream.url and upstream.model.")
    if routing.cascade_threshold is not None and not routing.cascade:
        found.append("routing.cascade_threshold has no effect without routing.cascade=true. Set that, or remove it.")
    if settings.upstream is not None and settings.upstream.model == AUTO:
        found.append(f"upstream.model is {AUTO!r}, the name that lets the router choose; give the model's own name.")
    if unknown := [name for name in settings.preload if name in settings.backends]:
        found.append(f"preload names {unknown[0]}, which a backend runs: nothing is opened here. Remove one of them.")
    return found
