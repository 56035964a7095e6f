"""A bigram model of the tests' own text, for the fake server to answer with: it honours what it is told to.

`Manners` say which parameters it heeds; those that it does not are ignored with 200 OK, as many servers do.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.endpoint.probe import Reader
from limbeck.recipe import OpenAITeacher
from limbeck.text.token_bytes import TokenBytes
from tests import tiny
from tests.endpoint.fake_answers import as_json, error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from tests.endpoint.fake_answers import Request

END = 2
TOKENIZER = tiny.build_tokenizer()
TABLE = TokenBytes.of_tokenizer(TOKENIZER)
SENTENCE = 16  # tokens after which a reply to a short question ends


def bigram(seed: int = 0) -> np.ndarray:
    """Logits of the next token after each: float64 [V, V]."""
    counts = np.full((len(TOKENIZER), len(TOKENIZER)), 1e-4)
    for row in tiny.rows(64, seed):
        ids = [1, *TOKENIZER(row["text"], add_special_tokens=False)["input_ids"]]
        for one, other in itertools.pairwise(ids):
            counts[one, other] += 1
    counts[:, :3] = 1e-6
    return np.log(counts)


@dataclass
class Manners:
    """What the endpoint heeds. `most_logprobs`: more alternatives are refused (0: log-probs are ignored silently)."""

    most_logprobs: int = 20
    refuses_unknown_keys: bool = False
    n: bool = True
    seed: bool = True
    stop: bool = True
    temperature: bool = True
    json_schema: bool = True
    knows_its_name: bool = True
    ids: bool = False
    completions: bool = True
    echo: bool = True
    token_prompts: bool = True
    prompt_logprobs: bool = True
    ends_told: bool = False
    tempered: bool = False  # log-probs of the distribution that was sampled from
    replicas: tuple[int, ...] = (0,)  # seeds of the models behind it, in turn
    fingerprints: tuple[str, ...] = ("fp-0",)
    spelling: str = "own"  # or "letters": tokens of another vocabulary
    change: Callable[[dict[str, Any]], object] = lambda choice: None  # of each choice, before it is sent
    models: dict[int, np.ndarray] = field(default_factory=dict)


KNOWN = {"model", "messages", "prompt", "temperature", "max_tokens", "top_p", "n", "stop", "seed", "logprobs",
         "top_logprobs", "response_format", "echo"}  # fmt: skip


class Endpoint:
    """`bodies` are all requests so far; `keys` the authorisation of each."""

    def __init__(self, manners: Manners) -> None:
        self.manners, self.bodies, self.keys = manners, [], []
        self.models = [bigram(seed) for seed in manners.replicas]
        self.draws = np.random.default_rng(0)

    # ---- requests ----

    async def answer(self, request: Request) -> AsyncGenerator[bytes]:
        if request.path == "/v1/chat/completions":
            yield self.chat(self._body(request))
        elif request.path == "/v1/completions" and self.manners.completions:
            yield self.completions(self._body(request))
        else:
            yield as_json(error("not found"), "404 X")

    def chat(self, body: dict[str, Any]) -> bytes:
        refused = self._refusal(body, body.get("top_logprobs", 0))
        if refused:
            return refused
        text = body["messages"][-1]["content"]
        prompt = TOKENIZER.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=False)
        if body.get("response_format") and self.manners.json_schema:
            choices = [
                {"index": 0, "message": {"role": "assistant", "content": '{"probe": "zebra"}'}, "finish_reason": "stop"}
            ]
            return self._answer(choices, len(prompt), 5)
        replies = self._replies(body, short="single word" in text)
        told = body.get("logprobs") and self.manners.most_logprobs
        choices = []
        for index, (ids, reason, spelled) in enumerate(replies):
            choice: dict[str, Any] = {"index": index, "message": {"role": "assistant", "content": spelled}}
            choice |= {"finish_reason": reason, "logprobs": None}
            if told:
                choice["logprobs"] = {"content": self._logprobs(body, ids, body.get("top_logprobs", 0))}
            if self.manners.ids and body.get("return_token_ids"):
                choice["token_ids"] = self._visible(ids)
            choices.append(choice)
        return self._answer(choices, len(prompt), sum(len(ids) for ids, *_ in replies))

    def completions(self, body: dict[str, Any]) -> bytes:
        refused = self._refusal(body, body.get("logprobs") or 0)
        if refused:
            return refused
        prompt = body["prompt"]
        if isinstance(prompt, list) and not self.manners.token_prompts:
            return as_json(error("prompt must be a string"), "400 X")
        given = prompt if isinstance(prompt, list) else TOKENIZER(prompt)["input_ids"]
        ids, reason, text = self._replies(body, short=False, start=given[-1])[0]
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}
        count = body.get("logprobs") if self.manners.most_logprobs else None
        if count:
            echo = body.get("echo") and self.manners.echo
            rows = self._rows([*given, *ids] if echo else [given[-1], *ids], count)
            shown = [*given, *ids] if echo else ids
            choice["text"] = (TOKENIZER.decode(given) if echo else "") + text
            choice["logprobs"] = {
                "tokens": [TABLE.of[i].decode("utf-8", "replace") for i in shown],
                "token_logprobs": ([None] if echo else []) + [row[0][1] for row in rows],
                "top_logprobs": ([None] if echo else [])
                + [{TABLE.of[i].decode("utf-8", "replace"): lp for i, lp in row} for row in rows],
            }
        if body.get("prompt_logprobs") and self.manners.prompt_logprobs:
            rows = self._rows(given, body["prompt_logprobs"])
            choice["prompt_logprobs"] = [None, *({str(i): {"logprob": lp} for i, lp in row} for row in rows)]
        return self._answer([choice], len(given), len(ids))

    def _body(self, request: Request) -> dict[str, Any]:
        body = request.json()
        self.bodies.append(body)
        self.keys.append(request.header("authorization") or "")
        self.logits = self.models[len(self.bodies) % len(self.models)]
        return body

    def _refusal(self, body: dict[str, Any], count: int) -> bytes | None:
        def refuse(message: str, status: int = 400, code: str = "invalid_request") -> bytes:
            return as_json(error(message, code), f"{status} X")

        if self.manners.knows_its_name and body["model"] != "bigram":
            return refuse("no such model", 404, "model_not_found")
        unknown = sorted(body.keys() - KNOWN)
        if self.manners.refuses_unknown_keys and unknown:
            return refuse(f"unrecognized request argument supplied: {unknown[0]}")
        if self.manners.most_logprobs and count > self.manners.most_logprobs:
            return refuse(f"top_logprobs must be at most {self.manners.most_logprobs}")
        return None

    # ---- answers ----

    def _replies(self, body: dict[str, Any], *, short: bool, start: int = 1) -> list[tuple[list[int], str, str]]:
        """Ids (with an end token where it came to its end), finish reason, text."""
        seed = body.get("seed") if self.manners.seed else None
        draws = self.draws if seed is None else np.random.default_rng(seed)
        return [self._reply(body, draws, short, start) for _ in range(body.get("n", 1) if self.manners.n else 1)]

    def _reply(self, body: dict[str, Any], draws: Any, short: bool, last: int) -> tuple[list[int], str, str]:
        warmth = body.get("temperature", 1.0) if self.manners.temperature else 0
        ids: list[int] = []
        while len(ids) < body["max_tokens"]:
            if short and len(ids) == SENTENCE:
                return [*ids, END], "stop", TOKENIZER.decode(ids)
            z = self.logits[last]
            p = np.exp((z - z.max()) / warmth) if warmth else np.eye(len(z))[z.argmax()]
            last = int(draws.choice(len(z), p=p / p.sum()))
            ids.append(last)
            text = TOKENIZER.decode(ids)
            for stop in body.get("stop") or [] if self.manners.stop else []:
                if stop in text:
                    return ids, "stop", text[: text.index(stop)]
        return ids, "length", TOKENIZER.decode(ids)

    def _visible(self, ids: list[int]) -> list[int]:
        return ids if self.manners.ends_told or not ids or ids[-1] != END else ids[:-1]

    def _rows(self, ids: list[int], count: int, warmth: float = 1.0) -> list[list[tuple[int, float]]]:
        """For every token but the first: itself and the most probable in its place, with log-probs."""
        rows = []
        for one, other in itertools.pairwise(ids):
            z = (self.logits[one] / warmth).copy()
            if other == END:  # all but certain
                z[END] = z.max() + 3
            logp = z - z.max() - math.log(np.exp(z - z.max()).sum())
            top = np.argsort(-logp)[:count].tolist()
            rows.append([(i, float(logp[i])) for i in dict.fromkeys([other, *top])])
        return rows

    def _logprobs(self, body: dict[str, Any], ids: list[int], count: int) -> list[dict[str, Any]]:
        warmth = (body.get("temperature") or 1.0) if self.manners.tempered else 1.0
        items = []
        for (own, logp), *top in self._rows([1, *self._visible(ids)], count, warmth):
            alternatives = sorted([(own, logp), *top], key=lambda each: -each[1])[:count]
            items.append(self._item(own, logp) | {"top_logprobs": [self._item(i, lp) for i, lp in alternatives]})
        return self._as_letters(items) if self.manners.spelling == "letters" else items

    def _item(self, index: int, logp: float) -> dict[str, Any]:
        value = TABLE.of[index] or b""
        return {"token": value.decode("utf-8", "replace"), "logprob": logp, "bytes": list(value)}

    @staticmethod
    def _as_letters(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A vocabulary of single bytes: every one of them is in ours too."""
        out = []
        for item in items:
            for byte in item["bytes"]:
                one = {"token": bytes([byte]).decode("utf-8", "replace"), "logprob": -0.5, "bytes": [byte]}
                out.append(one | {"top_logprobs": [one]})
        return out

    def _answer(self, choices: list[dict[str, Any]], prompt: int, reply: int) -> bytes:
        fingerprint = self.manners.fingerprints[len(self.bodies) % len(self.manners.fingerprints)]
        for choice in choices:
            self.manners.change(choice)
        usage = {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}
        facts = {"id": "x", "object": "chat.completion", "created": 0, "model": "bigram"}
        return as_json({**facts, "system_fingerprint": fingerprint, "choices": choices, "usage": usage})


def teacher_at(url: str, **settings: Any) -> OpenAITeacher:
    return OpenAITeacher(base_url=url, model="bigram", api_key_env=None, **settings)


def reader(tokenizer: Any = TOKENIZER) -> Reader:
    return Reader(
        TokenBytes.of_tokenizer(tokenizer),
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        lambda turns: tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False),
        (END,),
    )
