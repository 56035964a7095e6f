"""What an endpoint can do against what a recipe needs of it: probed once, kept with the store, told in sentences."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from limbeck.errors import TeacherError
from limbeck.findings import Problem, problem
from limbeck.lms.capabilities import STEADY, Capabilities
from limbeck.lms.openai import open_endpoint
from limbeck.lms.prices import cost_of
from limbeck.lms.probe import ALTERNATIVES, MOST_REQUESTS, MOST_TOKENS, probe
from limbeck.recipe import GenerateMode, Recipe, ScoreMode, TopK, Votes
from limbeck.rundir import atomic_write, fingerprint
from limbeck.teachers import OpenAITeacher, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from limbeck.lms.probe import Reader

FILE = "endpoint.json"
OTHERWISE = "Use trace.target.kind=votes (with trace.mode.n of 5 or more), or text"


def needs_probe(recipe: Recipe) -> bool:
    """Whether the recipe needs more of its endpoint than one reply to each prompt."""
    mode = recipe.trace.mode
    if not isinstance(recipe.teacher, OpenAITeacher):
        return False
    several = isinstance(mode, GenerateMode) and (mode.n > 1 or bool(mode.stop))
    return isinstance(recipe.trace.target, (TopK, Votes)) or several


def run_probe(recipe: Recipe, folder: Path, reader: Reader, on_message: Callable[[str], None]) -> Capabilities:
    """The record of the recipe's endpoint in `folder` (that of its store); made by a few requests where there is none.

    Raises TeacherError when it does not answer, or when the record is of another teacher.
    """
    settings = recipe.teacher
    assert isinstance(settings, OpenAITeacher)
    teacher, file = fingerprint(settings.identity), folder / FILE
    if file.exists():
        kept = _read(file)
        if kept.get("teacher") != teacher:
            raise TeacherError(f"{file} is of another teacher than this recipe's; move {folder} away to begin anew.")
        return Capabilities.from_json(kept["capabilities"])
    on_message(f"asking {name_of(settings)} what it can do: {probe_cost(recipe)}")
    record = asyncio.run(_probe(settings, reader, _wanted(recipe)))
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(file, json.dumps({"teacher": teacher, "capabilities": record.to_json()}, indent=1))
    return record


async def _probe(settings: OpenAITeacher, reader: Reader, wanted: int) -> Capabilities:
    async with open_endpoint(settings) as endpoint:
        return await probe(endpoint, reader, logprobs=wanted)


def _read(file: Path) -> dict:
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise TeacherError(f"{file} is damaged ({error}); delete it, and the endpoint is probed again.") from error
    return found if isinstance(found, dict) else {}


def _wanted(recipe: Recipe) -> int:
    target = recipe.trace.target
    return max(target.k, 1) if isinstance(target, TopK) else ALTERNATIVES[0]


def probe_cost(recipe: Recipe) -> str:
    """What a probe takes at most, in words."""
    settings = recipe.teacher
    assert isinstance(settings, OpenAITeacher)
    words = f"at most {MOST_REQUESTS} requests, about {sum(MOST_TOKENS):,} tokens"
    if settings.prices is None:
        return words
    return f"{words}, {cost_of(settings.prices, *MOST_TOKENS):.4f} {settings.prices.currency}"


# ---- what is missing -------------------------------------------------------------------------------------------------


def missing(recipe: Recipe, record: Capabilities) -> list[Problem]:
    """What the recipe needs and the endpoint was seen to lack; [] when it has all."""
    rules = (_logprobs, _replicas, _scores, _replies)
    return [found for rule in rules for found in rule(recipe, record)]


def _logprobs(recipe: Recipe, record: Capabilities) -> Iterator[Problem]:
    target, mode = recipe.trace.target, recipe.trace.mode
    if not isinstance(target, TopK):
        return
    where = "trace.target.kind"
    if not record.logprobs:
        message = f"is top_k, but {record.model} tells no log-probs: it was asked for them and left them out. "
        yield problem(where, f"{message}{OTHERWISE}.")
        return
    if record.tokens != "agree":
        message = f"is top_k, but whether its tokens are the student's cannot be proven: {record.tokens_why}. "
        yield problem(where, f"{message}{OTHERWISE}; or choose a student with the teacher's tokenizer.")
    if target.k > record.logprobs:
        message = f"is {target.k}, but the endpoint tells {record.logprobs} alternatives at most; set it to "
        yield problem("trace.target.k", f"{message}{record.logprobs}.")
    if not isinstance(mode, GenerateMode):
        return
    if record.raw is False and (mode.temperature != 1 or mode.top_p != 1):
        message = "changes the log-probs of this endpoint: they are of what is sampled from, not of the model. Set "
        yield problem("trace.mode.temperature", f"{message}trace.mode.temperature=1 and top_p=1. {OTHERWISE}.")
    if record.ends_told is False and mode.stop:
        message = "ends replies in a way that cannot be told from their own end here: the endpoint has no log-prob for "
        yield problem("trace.mode.stop", f"{message}ends. Remove it. {OTHERWISE}.")


def _replicas(recipe: Recipe, record: Capabilities) -> Iterator[Problem]:
    settings = recipe.teacher
    assert isinstance(settings, OpenAITeacher)
    if record.steady or settings.on_change == "mark":
        return
    seen = f"its answers to one greedy request differ by up to {record.spread or 0:.2g} nats (allowed are {STEADY:g})"
    if len(record.fingerprints) > 1:
        seen = f"the answers to one request came from {' and '.join(record.fingerprints)}"
    message = f"is served by replicas that are not one model: {seen}. Name a fixed version, or set "
    yield problem("teacher.model", f"{message}teacher.on_change=mark to take the mixture.")


def _scores(recipe: Recipe, record: Capabilities) -> Iterator[Problem]:
    if not isinstance(recipe.trace.mode, ScoreMode) or record.scores:
        return
    message = "is score, but the endpoint tells no log-probs of given text: neither prompt_logprobs nor echo has an "
    yield problem("trace.mode.kind", f"{message}effect. Let it write (generate), or use a vLLM server.")


def _replies(recipe: Recipe, record: Capabilities) -> Iterator[Problem]:
    mode, settings = recipe.trace.mode, recipe.teacher
    assert isinstance(settings, OpenAITeacher)
    if not isinstance(mode, GenerateMode):
        return
    if mode.n > 1 and not record.samples:
        message = f"asks for {mode.n} replies, but this endpoint's are all the same: it ignores the temperature. Use 1."
        yield problem("trace.mode.n", message)
    if settings.samples_per_request > 1 and not record.n:
        message = f"is {settings.samples_per_request}, but the endpoint gives one reply whatever `n` is; set it to 1."
        yield problem("teacher.samples_per_request", message)
    if mode.stop and not record.stop:
        yield problem("trace.mode.stop", "is ignored by this endpoint; remove it.")
    if "response_format" in settings.extra_body and not record.json_schema:
        yield problem("teacher.extra_body", "has a response_format, which this endpoint ignores; remove it.")


def sentences(record: Capabilities) -> list[str]:
    """The record for a reader: what was seen, a sentence each."""
    logprobs = f"{record.logprobs} log-probs per position" if record.logprobs else "no log-probs"
    facts = [f"teacher: {record.model} tells {logprobs}; tokens: {record.tokens} ({record.tokens_why})."]
    if record.logprobs:
        raw = {True: "raw", False: "changed by the temperature", None: "of unknown temperature"}[record.raw]
        ends = {True: "told", False: "not told", None: "not seen"}[record.ends_told]
        spread = "" if record.spread is None else f"; the same request differs by {record.spread:.2g} nats"
        facts.append(f"teacher: log-probs are {raw}, those of ends are {ends}{spread}.")
    ways = {"prompt_logprobs": record.prompt_logprobs and record.token_prompts, "echo": record.echo}
    scoring = " and ".join(name for name, works in ways.items() if works) or "no way"
    facts.append(f"teacher: given text is scored through {scoring}.")
    names = ("n", "seed", "stop", "json_schema")
    heeded = [name for name in names if getattr(record, name)]
    ignored = [name for name in names if not getattr(record, name)]
    facts.append(f"teacher: honours {', '.join(heeded) or 'nothing'}; ignores {', '.join(ignored) or 'nothing'}.")
    if not record.refuses_unknown_model:
        facts.append("teacher: answers to any model's name; nothing shows that teacher.model is what answers.")
    if record.prompt == "differ":
        facts.append("teacher: renders the prompt into another number of tokens than the student's template.")
    return facts
