"""A few short requests that find out what an endpoint really honours, before money is spent on it.

Many servers take any parameter and answer 200 OK. So nothing is believed that an answer does not show: log-probs are
there or not, a second sample is there or not, a stop word is missing from the text or not. One greedy request is sent
several times at once, so that replicas which are not the same model give themselves away.

All of it are at most `MOST_REQUESTS` requests of a few dozen tokens each (`MOST_TOKENS` in all).
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from limbeck.endpoint.align import Ends, align, check_text, token_id
from limbeck.endpoint.capabilities import STEADY, Capabilities
from limbeck.endpoint.client import with_system
from limbeck.endpoint.messages import ApiRequest
from limbeck.endpoint.network import judge_network, network_errors
from limbeck.endpoint.parse import Malformed, parse, read_answer, read_usage
from limbeck.endpoint.status import RequestRejected, RetryLater
from limbeck.errors import TeacherError, UnalignedTokens
from limbeck.text.finish import UNKNOWN, is_understood
from limbeck.types import Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from limbeck.endpoint.client import Endpoint
    from limbeck.endpoint.messages import Alternative, ApiChoice, ApiReply, ApiToken
    from limbeck.text.token_bytes import TokenBytes


logger = logging.getLogger(__name__)

FIRST_WAIT, MOST_WAIT = 1.0, 60.0  # seconds between tries, doubling
MOST_REQUESTS = 20
MOST_TOKENS = (1500, 600)  # of prompts, of replies
REPEATS = 3
ALTERNATIVES = (20, 5, 1)  # tried where more are refused
OPEN = "Name five animals that live near the sea, each with one short remark."
SHORT = "Reply with the single word: yes"
SCORED = "The sky is blue and the grass is green."
SCHEMA = {
    "type": "object",
    "properties": {"probe": {"type": "string", "enum": ["zebra"]}},
    "required": ["probe"],
    "additionalProperties": False,
}
RARE = math.log(1e-3)  # alternatives below this say little of a model, and much of its kernels
FOREIGN = 0.05  # mass of alternatives that are no tokens of ours: more than that, and the vocabulary is another
IDS = {"return_token_ids": True, "return_tokens_as_token_ids": True}
NO_MODEL = "limbeck-probe-no-such-model"
WORD = re.compile(r"[A-Za-z]{3,}")
FEW = 4
NONE_TOLD = "it tells no log-probs"
CUT_OTHERWISE = 0.1  # a model may write a word in other pieces than its tokenizer would, but seldom does
APART = 100.0  # nats: nothing in common


@dataclass(frozen=True)
class Reader:
    """Our side of the comparison: the tokenizer's bytes, how it cuts a text, how a conversation is rendered (None
    where it has no chat template), and the tokens that end a turn."""

    table: TokenBytes
    encode: Callable[[str], list[int]]
    render: Callable[[list[dict[str, str]]], list[int]] | None
    ends: tuple[int, ...]


@dataclass
class _EndpointProbe:
    """The requests of one probe, and what all of them say of who answers and what it costs."""

    endpoint: Endpoint
    reader: Reader
    base: dict[str, Any]
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    models: set[str] = field(default_factory=set)
    prints: set[str] = field(default_factory=set)
    told: int = 0
    strange_ends: set[str] = field(default_factory=set)
    unread: str = ""  # why an answer could not be read
    garbled: str = ""  # why log-probs could not be read

    @classmethod
    def at(cls, endpoint: Endpoint, reader: Reader) -> _EndpointProbe:
        settings = endpoint.settings
        return cls(endpoint, reader, {"model": settings.model, "temperature": 0, **settings.extra_body})

    @property
    def chat(self) -> bool:
        return self.endpoint.settings.endpoint == "chat"

    def messages(self, text: str) -> list[Any]:
        return with_system(self.endpoint.settings.system, [{"role": "user", "content": text}])

    async def ask(self, text: str, *, longest: int = 24, logprobs: int | None = None, **more: Any) -> RawReply:
        """A question; `more` are further keys of the body, None takes one away."""
        asked: dict[str, Any] = {"messages": self.messages(text)} if self.chat else {"prompt": text}
        wanted = self.told if logprobs is None else logprobs
        if wanted:
            asked |= {"logprobs": True, "top_logprobs": wanted} if self.chat else {"logprobs": wanted}
        return await self.send(self.base | asked | {self.endpoint.settings.max_tokens_key: longest} | more)

    async def send(self, body: dict[str, Any], *, tries: int = 4) -> RawReply:
        self.requests += 1
        path = "/completions" if "prompt" in body else "/chat/completions"
        given = {key: value for key, value in body.items() if value is not None}
        reply = await post(self.endpoint, path, given, tries=tries)
        prompt, completion = read_usage(reply.body.get("usage") if isinstance(reply.body, dict) else None)
        self.prompt_tokens += prompt or 0
        self.completion_tokens += completion or 0
        return reply

    def read(self, reply: RawReply, *, n: int = 1, logprobs: int | None = None) -> ApiReply | None:
        """The answer in a body; None where it is none, or lacks the log-probs that were asked for."""
        wanted = self.told if logprobs is None else logprobs
        ask = ApiRequest(prompt=None if self.chat else "", sampling=Sampling(n=n), logprobs=wanted)
        try:
            answer = read_answer(reply.body, ask, 0.0) if reply.good else None
        except Malformed as error:
            self.unread = str(error)
            return None
        if answer is not None:
            ends = {choice.finish_reason for choice in answer.choices}
            self.strange_ends |= {"none" if end == UNKNOWN else end for end in ends if not is_understood(end)}
            self.models |= {answer.model} - {""}
            self.prints |= {answer.system_fingerprint} - {""}
        return answer


async def probe(endpoint: Endpoint, reader: Reader, *, logprobs: int = ALTERNATIVES[0]) -> Capabilities:
    """Ask `endpoint` some short questions and record what its answers show. `logprobs`: how many alternatives the
    recipe would like; 20 is what most allow.

    Raises TeacherError where a plain question is not answered at all, or not to this key.
    """
    run = _EndpointProbe.at(endpoint, reader)
    first = await _first(run, logprobs)
    more = await asyncio.gather(*(run.ask(OPEN) for _ in range(REPEATS - 1)))
    repeats = [first, *(found for each in more if (found := run.read(each)) is not None)]
    short = run.read(await run.ask(SHORT, longest=48))
    hot = run.read(await run.ask(OPEN, longest=1, temperature=2.0, seed=3))
    tokens, why = _tokens([answer.choices[0] for answer in (first, short) if answer is not None], reader, run.garbled)
    sampled, given = await _sampling(run), await _given_text(run)
    stops, schema = await _stops(run, first.choices[0].text), await _follows_schema(run)
    served = await run.ask(OPEN, longest=1, logprobs=0, model=NO_MODEL)
    return Capabilities(
        model=first.model,
        # Without fingerprints the names that answer may still give two models away.
        fingerprints=tuple(sorted(run.prints | (run.models if len(run.models) > 1 else set()))),
        endpoint=endpoint.settings.endpoint,
        logprobs=run.told,
        raw=_raw(first, hot),
        ends_told=_ends_told(short, reader) if run.told else None,
        tokens=tokens,
        tokens_why=why,
        prompt=_prompt(run, first),
        spread=_spread(repeats),
        same_text=len({answer.choices[0].text for answer in repeats}) == 1,
        stop=stops,
        json_schema=schema,
        refuses_unknown_model=not served.good,
        token_ids=any(token.id is not None for token in first.choices[0].tokens or ()),
        requests=run.requests,
        prompt_tokens=run.prompt_tokens,
        completion_tokens=run.completion_tokens,
        strange_ends=tuple(sorted(run.strange_ends)),
        **sampled,
        **given,
    )


# ---- log-probs -------------------------------------------------------------------------------------------------------


async def _first(run: _EndpointProbe, wanted: int) -> ApiReply:
    """A greedy reply with as many alternatives as are told. What an endpoint refuses is left out from then on: ids
    first, then the number of alternatives, log-probs, and at last temperature 0."""
    counts = [wanted, *(count for count in ALTERNATIVES if count < wanted), 0]
    plans: list[tuple[int, dict[str, Any]]] = [(wanted, IDS), *((count, {}) for count in counts)]
    plans.append((0, {"temperature": None}))
    refused = ""
    for count, keys in plans:
        reply = await run.ask(OPEN, logprobs=count, **keys)
        if not reply.good:
            refused = reply.reason
            continue
        answer = run.read(reply, logprobs=count)
        run.garbled = run.garbled if answer else run.unread
        found = max((len(token.top) for token in answer.choices[0].tokens or ()), default=0) if answer else 0
        run.told = min(count, found)
        run.base |= keys
        if run.told or (answer := run.read(reply, logprobs=0)) is not None:
            assert answer is not None
            return answer
        refused = f"its answer cannot be read ({run.unread})"
    raise TeacherError(f"{run.endpoint.where} does not answer a plain question: {run.endpoint.redact(refused)}.")


def _spelling(token: Alternative | ApiToken) -> object:
    return token.text or token.id


def _gap(one: ApiToken, other: ApiToken) -> float | None:
    """Largest difference of the log-probs that both tell, rare ones aside; None where they have none in common."""
    ours, theirs = ({_spelling(t): t.logp for t in each.top} for each in (one, other))
    common = [key for key in ours.keys() & theirs.keys() if max(ours[key], theirs[key]) > RARE]
    return max((abs(ours[key] - theirs[key]) for key in common), default=None)


def _spread(repeats: Sequence[ApiReply]) -> float | None:
    """Over the positions that have the same tokens before them."""
    first = repeats[0].choices[0].tokens or ()
    worst: list[float] = []
    for answer in repeats[1:]:
        for one, other in zip(first, answer.choices[0].tokens or (), strict=False):
            gap = _gap(one, other)
            worst.append(APART if gap is None else gap)
            if _spelling(one) != _spelling(other):
                break
    return max(worst, default=None)


def _raw(cool: ApiReply, hot: ApiReply | None) -> bool | None:
    """The first position has the same words before it, whatever is sampled there."""
    ours, theirs = cool.choices[0].tokens, hot.choices[0].tokens if hot else None
    if not ours or not theirs:
        return None
    gap = _gap(ours[0], theirs[0])
    return None if gap is None else gap <= STEADY


def _ends_told(short: ApiReply | None, reader: Reader) -> bool | None:
    if short is None or short.choices[0].finish_reason != "stop" or not short.choices[0].tokens:
        return None
    return token_id(short.choices[0].tokens[-1], reader.table) in reader.ends


# ---- tokens ----------------------------------------------------------------------------------------------------------


def _tokens(
    choices: Sequence[ApiChoice], reader: Reader, garbled: str
) -> tuple[Literal["agree", "differ", "unknown"], str]:
    """Whether the tokens of replies are ours, and what shows it. Ids have to spell the text in our vocabulary. Without
    ids every token has to have the bytes of one of ours, and a text has to be cut as ours is: letters alone would be in
    every vocabulary."""
    told = [choice for choice in choices if choice.tokens]
    if not told:
        none = "log-probs were asked for, and there are none"
        return "unknown", f"its log-probs cannot be read: {garbled}" if garbled not in ("", none) else NONE_TOLD
    theirs = ours = 0
    unknown = 0.0
    for choice in told:
        try:
            found = align(choice.tokens or (), reader.table, Ends(reader.ends, True))
            check_text(found.ids, choice.text, reader.table, cut=bool(choice.reasoning))
        except UnalignedTokens as error:
            return "differ", str(error)
        ids = [int(index) for index in found.ids if int(index) not in reader.ends]
        theirs, ours = theirs + len(ids), ours + len(reader.encode(choice.text))
        unknown += found.unknown * len(ids)
    if theirs < FEW:
        return "unknown", f"its replies have {theirs} tokens, too few to tell"
    named = all(token.id is not None for choice in told for token in choice.tokens or ())
    if not named and abs(theirs - ours) > CUT_OTHERWISE * ours:
        return "differ", f"it cuts its replies into {theirs} tokens, this vocabulary into {ours}"
    if unknown / theirs > FOREIGN:
        return "differ", f"{unknown / theirs:.0%} of the mass it tells is on tokens that this vocabulary lacks"
    return "agree", f"{theirs} tokens have the {'ids' if named else 'bytes'} of ours"


def _prompt(run: _EndpointProbe, first: ApiReply) -> Literal["agree", "differ", "unknown"]:
    """By their number: whether the endpoint renders a conversation as this tokenizer does."""
    render = run.reader.render
    if first.prompt_tokens is None or (run.chat and render is None):
        return "unknown"
    ours = render(run.messages(OPEN)) if run.chat and render else run.reader.encode(OPEN)
    return "agree" if len(ours) == first.prompt_tokens else "differ"


# ---- what is asked beside the question -------------------------------------------------------------------------------


async def _sampling(run: _EndpointProbe) -> dict[str, bool]:
    """Whether samples differ, a seed repeats one, and several come at once."""
    warm: dict[str, Any] = {"longest": 12, "logprobs": 0, "temperature": 1.0}
    one = await run.ask(OPEN, seed=7, **warm)
    keys: dict[str, Any] = {} if one.good else {"seed": None}
    replies = [one] if one.good else []
    replies += [await run.ask(OPEN, **warm, **({"seed": seed} | keys)) for seed in (7, 8, 9)]
    two = run.read(await run.ask(OPEN, n=2, **warm, **({"seed": 10} | keys)), n=2, logprobs=0)
    texts = [answer.choices[0].text if (answer := run.read(each, logprobs=0)) else None for each in replies]
    both = [choice.text for choice in two.choices] if two else []
    samples = len({*texts, *both} - {None}) > 1
    repeated = one.good and texts[0] is not None and texts[0] == texts[1]
    return {
        "samples": samples,
        "seed": samples and repeated and {texts[2], texts[3]} != {texts[0]},
        "n": len(both) == 2,
    }


async def _stops(run: _EndpointProbe, text: str) -> bool | None:
    """A piece from within the greedy reply has to be missing when it is a stop string. None: no piece will do."""
    piece = _piece(text)
    if not piece:
        return None
    answer = run.read(await run.ask(OPEN, logprobs=0, stop=[piece]), logprobs=0)
    if answer is None or piece in answer.choices[0].text:
        return False
    return answer.choices[0].finish_reason == "stop" or text.startswith(answer.choices[0].text)


def _piece(text: str) -> str:
    """The first word that does not begin the text and was not there before; where there is none (a base model may write
    anything), some characters. "" for a text of one character."""
    words = [found for found in WORD.finditer(text) if found.start() and text.index(found[0]) == found.start()]
    if words:
        return words[0][0]
    pieces = [text[at : at + 3] for at in range(1, len(text)) if text.index(text[at : at + 3]) == at]
    return next((piece for piece in pieces if piece.strip() and "\ufffd" not in piece), "")


async def _follows_schema(run: _EndpointProbe) -> bool:
    wanted = {"type": "json_schema", "json_schema": {"name": "probe", "strict": True, "schema": SCHEMA}}
    reply = await run.ask("Which animal?", longest=64, logprobs=0, response_format=wanted)
    answer = run.read(reply, logprobs=0)
    try:
        return answer is not None and json.loads(answer.choices[0].text) == {"probe": "zebra"}
    except ValueError:
        return False


async def _given_text(run: _EndpointProbe) -> dict[str, bool]:
    """Whether it takes raw prompts, as text and as token ids, and tells log-probs of what stands in them."""
    base = {"model": run.base["model"], "temperature": 0, "max_tokens": 1}
    ids = run.reader.encode(SCORED)
    echoed = await run.send(base | {"prompt": SCORED, "echo": True, "logprobs": 2}, tries=2)
    choice = _choice(echoed)
    logprobs = choice.get("logprobs")
    listed = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    echo = isinstance(listed, list) and len(listed) >= FEW and str(choice.get("text", "")).startswith(SCORED)
    found = {"completions": bool(choice), "echo": echo, "token_prompts": False, "prompt_logprobs": False}
    if not choice:
        return found
    scored = await run.send(base | {"prompt": ids, "prompt_logprobs": 2}, tries=2)
    usage = scored.body.get("usage") if isinstance(scored.body, dict) else None
    rows = _choice(scored).get("prompt_logprobs")
    found["token_prompts"] = isinstance(usage, dict) and usage.get("prompt_tokens") == len(ids)
    found["prompt_logprobs"] = isinstance(rows, list) and len(rows) == len(ids) and all(map(bool, rows[1:]))
    return found


def _choice(reply: RawReply) -> dict[str, Any]:
    choices = reply.body.get("choices") if reply.good and isinstance(reply.body, dict) else None
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


# ---- requests of any form --------------------------------------------------------------------------------------------
#
# `Endpoint.ask` is the road for replies. Here a refusal is an answer too: what a probe is after.


@dataclass(frozen=True)
class RawReply:
    """`status` and the parsed body; {} where it was not JSON. `reason` says why there is no use in it, "" where there
    is."""

    status: int
    body: Any
    reason: str = ""

    @property
    def good(self) -> bool:
        return not self.reason


async def post(endpoint: Endpoint, path: str, body: dict[str, Any], *, tries: int) -> RawReply:
    """Send one request; what may work later is tried again, at most `tries` times. A request that the endpoint does not
    understand is a RawReply with a reason.

    Raises TeacherError for a wrong key, a spent quota, a redirect, or an endpoint that stays silent.
    """
    wait, reason = FIRST_WAIT, ""
    for left in range(tries, 0, -1):
        outcome = await _once(endpoint, path, body)
        if isinstance(outcome, RawReply):
            return outcome
        reason = outcome.reason
        if left > 1:
            pause = min(max(outcome.after or 0.0, wait), MOST_WAIT)
            logger.info("%s%s: %s; tried again in %.1f s", endpoint.where, path, reason, pause)
            await asyncio.sleep(pause)
            wait *= 2
    raise TeacherError(
        endpoint.redact(f"{endpoint.where} gives no answer to {path} after {tries} tries: {reason}. ")
        + "Run the same command again when it works."
    )


async def _once(endpoint: Endpoint, path: str, body: dict[str, Any]) -> RawReply | RetryLater:
    import httpx2
    import openai

    try:
        async with asyncio.timeout(endpoint.settings.timeout_seconds):
            response = await endpoint.client.post(path, body=body, cast_to=httpx2.Response)
            status, headers, content = response.status_code, response.headers, response.content
    except openai.APIStatusError as error:
        status, headers, content = error.status_code, error.response.headers, error.response.content
    except network_errors() as error:  # a timeout is one too
        return judge_network(error, endpoint.where, endpoint.redact)
    if not 200 <= status < 300:
        return _refused(endpoint, status, headers, content)
    try:
        return RawReply(status, parse(content))
    except Malformed as error:
        return RawReply(status, {}, endpoint.redact(str(error)))


def _refused(endpoint: Endpoint, status: int, headers: Any, content: bytes) -> RawReply | RetryLater:
    """What is wrong with every request ends the probe; what is wrong with this one is its answer."""
    try:
        verdict = endpoint.judge(status, headers, content)
    except TeacherError as error:
        if status in (401, 402, 403, 429) or 300 <= status < 400:
            raise
        return RawReply(status, {}, str(error))
    if isinstance(verdict, RetryLater) and status != 500:  # which is what servers say to what they did not foresee
        return verdict
    if isinstance(verdict, RequestRejected) and verdict.doubt:  # the probe's questions are harmless
        raise TeacherError(verdict.doubt)
    return RawReply(status, {}, verdict.reason)
