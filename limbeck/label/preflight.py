"""What an endpoint can do against what a recipe needs of it: probed once, kept with the store, told in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limbeck.config.problems import Problem, problem
from limbeck.endpoint.budget import cost_of
from limbeck.endpoint.capabilities import STEADY, Capabilities
from limbeck.endpoint.client import open_endpoint
from limbeck.endpoint.probe import ALTERNATIVES, MOST_REQUESTS, MOST_TOKENS, NONE_TOLD, probe
from limbeck.endpoint.retry import run_loop
from limbeck.label.recorders import keeping_of, reader_for
from limbeck.recipe import GenerateMode, OpenAITeacher, Recipe, ScoreMode, TopK, Votes, name_of
from limbeck.recipe.rules.check import raise_problems
from limbeck.system.atomic import fingerprint
from limbeck.system.sealed import read_json_or, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from limbeck.endpoint.probe import Reader
    from limbeck.label.replies import TraceBuilder

FILE = "endpoint.json"
OTHERWISE = "Use trace.target.kind=votes (with trace.mode.n of 5 or more), or text"


def needs_probe(recipe: Recipe) -> bool:
    """Whether the recipe needs more of its endpoint than one reply to each prompt."""
    mode = recipe.trace.mode
    if not isinstance(recipe.teacher, OpenAITeacher):
        return False
    several = isinstance(mode, GenerateMode) and (mode.n > 1 or bool(mode.stop))
    return isinstance(recipe.trace.target, (TopK, Votes)) or several


def prepare(
    recipe: Recipe, stores: Sequence[Path], tokenizer: PreTrainedTokenizerBase, on_message: Callable[[str], None]
) -> tuple[TraceBuilder, Capabilities | None]:
    """What a store keeps of the endpoint's answers, and what the endpoint was seen to do (None where the recipe needs
    nothing special). An endpoint that was probed for one of `stores` is not probed again.

    Raises RecipeError when the recipe needs what the endpoint lacks, TeacherError when it does not answer.
    """
    record = None
    if needs_probe(recipe):
        record = run_probe(recipe, stores, reader_for(recipe, tokenizer), on_message)
        raise_problems(missing(recipe, record))
        for sentence in sentences(record):
            on_message(sentence)
    return keeping_of(recipe, tokenizer, record), record


def run_probe(
    recipe: Recipe, stores: Sequence[Path], reader: Reader, on_message: Callable[[str], None]
) -> Capabilities:
    """The record of the recipe's endpoint from one of `stores`, or made by a few requests.

    Raises TeacherError when it does not answer.
    """
    settings = recipe.teacher
    assert isinstance(settings, OpenAITeacher)
    for store in stores:
        kept = kept_record(settings, store)
        if kept is not None:
            return kept
    target = recipe.trace.target
    wanted = max(target.k, 1) if isinstance(target, TopK) else ALTERNATIVES[0]
    on_message(f"asking {name_of(settings)} what it can do: {probe_cost(recipe)}")
    return run_loop(_probe(settings, reader, wanted))


def kept_record(settings: OpenAITeacher, folder: Path) -> Capabilities | None:
    """The record of this endpoint in `folder`, if there is one. A damaged one is none: the endpoint is probed again."""
    found = read_json_or(folder / FILE, dict[str, Any]())
    if found.get("teacher") != fingerprint(settings.identity):
        return None
    return Capabilities.from_json(found.get("capabilities", {}))


def cost_of_probe(settings: OpenAITeacher, record: Capabilities) -> float:
    """By the endpoint's counts; at most of a probe where it does not count."""
    told = record.prompt_tokens or MOST_TOKENS[0], record.completion_tokens or MOST_TOKENS[1]
    return cost_of(settings.prices, *told)


def keep_record(recipe: Recipe, folder: Path, record: Capabilities) -> None:
    """Write the record beside the store that is made with it: a resumed job does not ask again."""
    settings = recipe.teacher
    assert isinstance(settings, OpenAITeacher)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"teacher": fingerprint(settings.identity), "capabilities": record.to_json()}
    write_json(folder / FILE, facts)


async def _probe(settings: OpenAITeacher, reader: Reader, wanted: int) -> Capabilities:
    async with open_endpoint(settings) as endpoint:
        return await probe(endpoint, reader, logprobs=wanted)


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
        why = "it was asked for them and left them out" if record.tokens_why == NONE_TOLD else record.tokens_why
        message = f"is top_k, but {record.model} tells no log-probs: {why}. "
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
    if record.steady or settings.on_change == "annotate":
        return
    seen = f"its answers to one greedy request differ by up to {record.spread or 0:.2g} nats (allowed are {STEADY:g})"
    if len(record.fingerprints) > 1:
        seen = f"the answers to one request came from {' and '.join(record.fingerprints)}"
    message = f"is served by replicas that are not one model: {seen}. Name a fixed version, or set "
    yield problem("teacher.model", f"{message}teacher.on_change=annotate to take the mixture.")


def _scores(recipe: Recipe, record: Capabilities) -> Iterator[Problem]:
    if not isinstance(recipe.trace.mode, ScoreMode) or record.scores:
        return
    message = "is score, but the endpoint tells no log-probs of given tokens: neither prompt_logprobs nor echo has an "
    yield problem("trace.mode.kind", f"{message}effect there. Let it write (generate), or use a vLLM server.")


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
    if mode.stop and record.stop is False:
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
    ways = [name for name in ("prompt_logprobs", "echo") if getattr(record, name) and record.token_prompts]
    facts.append(f"teacher: given text is scored through {' and '.join(ways) or 'no way'}.")
    names = ("n", "seed", "stop", "json_schema")
    heeded = [name for name in names if getattr(record, name)]
    ignored = [name for name in names if getattr(record, name) is False]
    facts.append(f"teacher: honours {', '.join(heeded) or 'nothing'}; ignores {', '.join(ignored) or 'nothing'}.")
    if not record.refuses_unknown_model:
        facts.append("teacher: answers to any model's name; nothing shows that teacher.model is what answers.")
    if record.strange_ends:
        words = ", ".join(record.strange_ends)
        facts.append(
            f"teacher: says why a reply ended in a word that is not known: {words}. Such replies are learnt without "
            "the end of their turn."
        )
    if record.prompt == "differ":
        facts.append("teacher: renders the prompt into another number of tokens than the student's template.")
    return facts
