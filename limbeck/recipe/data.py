"""The recipe's sections on where rows come from."""

from __future__ import annotations

from datetime import date, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from limbeck.config.problems import Problem, problem
from limbeck.config.schema import Positive, Section

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.recipe.recipe import Recipe


def _absent(value: object) -> bool:
    """Keys that came later are part of a fingerprint only where they are set: earlier runs stay current."""
    return not value


class StdlibSource(Section):
    """Documented functions of the running interpreter's own standard library (topic: the module)."""

    kind: Literal["stdlib"] = "stdlib"


class FileSource(Section):
    """JSONL, Parquet, CSV or plain text: a file, a folder, or a glob. The format is read from the extension."""

    kind: Literal["files"] = "files"
    path: str = Field(description="file, folder or glob of .jsonl, .parquet, .csv, .txt or .md files")
    text: str | None = Field(default=None, description="column of plain text")
    prompt: str | None = Field(default=None, description="column of the prompt (with `completion`)")
    completion: str | None = Field(
        default=None, description="column of the completion (may be absent in generate mode)"
    )
    messages: str | None = Field(default=None, description="column of chat messages: a list of {role, content}")
    reference: str | None = Field(default=None, description="column of the reference answer; null takes the completion")
    topic: str | None = Field(default=None, description="column of the topic; results are reported by topic, too")
    tools: str | None = Field(
        default=None,
        exclude_if=_absent,
        description="column of the functions that the template tells of; null takes `tools` beside the messages",
    )


class DatasetSource(Section):
    """A `datasets` name (hub id or a local folder that `datasets.load_dataset` opens)."""

    kind: Literal["datasets"] = "datasets"
    path: str = Field(description="name given to datasets.load_dataset")
    name: str | None = Field(default=None, description="configuration of the dataset")
    split: str = Field(default="train", description="split to read")
    text: str | None = Field(default=None, description="column of plain text")
    prompt: str | None = Field(default=None, description="column of the prompt (with `completion`)")
    completion: str | None = Field(default=None, description="column of the completion")
    messages: str | None = Field(default=None, description="column of chat messages: a list of {role, content}")
    reference: str | None = Field(default=None, description="column of the reference answer; null takes the completion")
    topic: str | None = Field(default=None, description="column of the topic; results are reported by topic, too")
    tools: str | None = Field(
        default=None,
        exclude_if=_absent,
        description="column of the functions that the template tells of; null takes `tools` beside the messages",
    )


class ProblemsSource(Section):
    """Problems with worked steps and checkable answers, made from a seed (`limbeck/data/synthetic.py`)."""

    kind: Literal["problems"] = "problems"
    family: Literal["chain", "sum", "story"] = Field(
        default="chain",
        description="`chain`: operations modulo 10, from left to right; `sum`: two long numbers; `story`: in words",
    )
    levels: tuple[Annotated[int, Field(ge=1, le=16)], ...] = Field(
        default=(4,), min_length=1, description="operations of a chain, digits of a sum, events of a story; in turn"
    )
    count: Positive = Field(default=1000, description="number of problems; repeated ones are dropped as duplicates")
    part: Annotated[int, Field(ge=0, le=3)] = Field(
        default=0, description="which quarter of all problems: two parts never share one, whatever the seed"
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="seed of the problems")
    completion: Literal["worked", "answer"] = Field(
        default="worked", description="`worked`: steps in <think> tags, then the answer; `answer`: the answer alone"
    )


class CapturedSource(Section):
    """What `limbeck capture` recorded: conversations with the reply as the last assistant turn (topic: a tag). An
    exchange that a later one of the same conversation repeats is left out: each turn is learnt once."""

    kind: Literal["captured"] = "captured"
    path: str = Field(description="folder of the capture")
    models: tuple[str, ...] = Field(
        default=(),
        description="only replies of these models, as asked for or as answered; required when several are there",
    )
    exclude_models: tuple[str, ...] = Field(default=(), description="no replies of these models")
    tags: tuple[str, ...] = Field(default=(), description="only exchanges with all of these tags, each NAME=VALUE")
    finish_reasons: tuple[str, ...] = Field(
        default=("stop",),
        min_length=1,
        description="only replies that ended so, in any server's words for it (`eos` is `stop`); `cut` are those that "
        "were broken off, `refusal` those that refuse, `unknown` those without a reason",
    )
    since: str | None = Field(
        default=None, description="only exchanges from this time on, ISO 8601, UTC without a zone"
    )
    until: str | None = Field(default=None, description="only exchanges before this time")
    topic: str | None = Field(default=None, description="tag by which results are also reported")
    reasoning: Literal["drop", "think"] = Field(
        default="drop",
        description="what becomes of reasoning that a server gives apart from the reply: `think` puts it before the "
        "reply in <think> tags",
    )


DataSource = StdlibSource | FileSource | DatasetSource | ProblemsSource | CapturedSource


class Data(Section):
    """The transfer set: what is read, how long a row may be, and how much of it is held out."""

    source: DataSource = Field(discriminator="kind")
    max_length: Annotated[int, Field(ge=2)] = Field(default=512, description="maximum length of a row in tokens")
    long_rows: Literal["stop", "skip", "truncate"] = Field(default="truncate", description="action for longer rows")
    bad_rows: Literal["stop", "skip"] = Field(default="stop", description="action for empty or malformed rows")
    chat_template: bool = Field(
        default=True, description="render prompt/completion pairs as a chat; false joins them as plain text"
    )
    holdout: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        default=0.1, description="share of rows held out for evaluation, chosen by content hash"
    )
    template_values: dict[str, Any] = Field(
        default={},
        exclude_if=_absent,
        description="variables that the chat template reads, such as `{enable_thinking: false}`",
    )
    template_date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] | None = Field(
        default=None,
        exclude_if=_absent,
        description="day that the clock of the chat template shows; null is 2026-01-01: rows are the same every day",
    )
    limit: Positive | None = Field(default=None, description="maximum number of training rows (a seeded sample)")
    limit_heldout: Positive | None = Field(default=256, description="maximum number of held-out rows")

    @property
    def template_day(self) -> date:
        """What the clock of a chat template shows while rows are made."""
        return date.fromisoformat(self.template_date) if self.template_date else DAY


DAY = date(2026, 1, 1)
"""What templates take for today while rows are made, where the recipe names no day."""

TEMPLATES_OWN = ("messages", "tools", "documents", "add_generation_prompt", "strftime_now")
"""What a template is given anyway."""


# ---- what it may not say ---------------------------------------------------------------------------------------------


def template_rules(recipe: Recipe) -> Iterator[Problem]:
    """Contradictions of `data.template_values`."""
    for name in sorted(set(recipe.data.template_values) & set(TEMPLATES_OWN)):
        where = "data.source.tools" if name == "tools" else "the rows"
        yield problem("data.template_values", f"has {name!r}, which the template is given anyway: from {where}.")


def date_rules(recipe: Recipe) -> Iterator[Problem]:
    """A day that the calendar has."""
    try:
        date.fromisoformat(recipe.data.template_date or "2026-01-01")
    except ValueError:
        yield problem("data.template_date", f"is {recipe.data.template_date}, a day that no calendar has.")


def captured_rules(recipe: Recipe) -> Iterator[Problem]:
    """Contradictions of `data.source: {kind: captured}`."""
    source = recipe.data.source
    if not isinstance(source, CapturedSource):
        return
    for name in sorted(set(source.models) & set(source.exclude_models)):
        yield problem("data.source.exclude_models", f"names {name!r}, which `models` asks for; keep one of them.")
    for tag in source.tags:
        if not tag.partition("=")[0] or "=" not in tag:
            yield problem("data.source.tags", f"has {tag!r}; each must be NAME=VALUE, such as app=helpdesk.")
    times = {}
    for name in ("since", "until"):
        text = getattr(source, name)
        try:
            times[name] = datetime.fromisoformat(text) if text else None
        except ValueError:
            yield problem(f"data.source.{name}", f"is {text!r}; it must be a time such as 2026-11-25T08:00+00:00.")
    since, until = times.get("since"), times.get("until")
    if since and until and since.replace(tzinfo=None) >= until.replace(tzinfo=None) and since.tzinfo == until.tzinfo:
        yield problem("data.source.until", f"is {source.until}, not after `since` ({source.since}).")
    if source.reasoning == "think" and recipe.trace.mode.kind == "generate":
        yield problem("data.source.reasoning", "has no effect where the teacher writes the replies; remove it.")
