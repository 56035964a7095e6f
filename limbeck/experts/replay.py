"""Greedy answers that an expert gave when it was added, to be given again: the same weights run in the same way write
the same tokens."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from limbeck.errors import ExpertError
from limbeck.experts.scoring import read_jsonl
from limbeck.types import Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from limbeck.types import LocalLM, Reply

REPLAY = "replay.jsonl"
PROMPTS = 20
TOKENS = 32
MOST_TOKENS = 1024
"""Of an answer that is replayed: others may have written more than TOKENS, but not without end."""
MOST_PROMPT = 128
"""Tokens of a prompt: it is cut at its beginning, so that it still ends where the reply begins."""


@dataclass(frozen=True)
class Replay:
    """A prompt as token ids, and what was answered greedily, at most TOKENS tokens."""

    id: str
    ids: list[int]
    text: str
    answer: str
    answer_ids: list[int]
    finish_reason: str


def write_replays(
    lm: LocalLM, prompts: Sequence[tuple[str, list[int]]], on_one: Callable[[int], None] = lambda _: None
) -> tuple[list[Replay], float]:
    """Answers to prompts (id, tokens), one at a time, and tokens written per second (0.0 without any)."""
    found, seconds = [], 0.0
    if prompts:
        _answer(lm, prompts[0][1], 2)  # the first call of an engine prepares it
    for number, (id, ids) in enumerate(prompts):
        begun = time.perf_counter()
        reply = _answer(lm, ids, TOKENS)
        seconds += time.perf_counter() - begun
        text = str(lm.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        found.append(Replay(id, ids, text, reply.text, reply.ids.tolist(), reply.finish_reason))
        on_one(number)
    written = sum(len(replay.answer_ids) for replay in found)
    return found, written / seconds if seconds else 0.0


def _answer(lm: LocalLM, ids: list[int], tokens: int) -> Reply:
    prompt = np.asarray(ids, dtype=np.int32)
    return lm.generate([prompt], Sampling(temperature=0.0, max_tokens=tokens))[0][0]


def differing(lm: LocalLM, replays: Sequence[Replay], on_one: Callable[[int], None] = lambda _: None) -> list[Replay]:
    """Those that are answered with other tokens now. Raises ExpertError for tokens that the model does not know."""
    others = []
    for number, replay in enumerate(replays):
        known = replay.ids and all(0 <= token < lm.vocab for token in replay.ids)
        if not known or not 0 < len(replay.answer_ids) <= MOST_TOKENS:
            raise ExpertError(
                f"{REPLAY}: the prompt {replay.id[:80]!r} is not of this model's tokens, or its answer has none or "
                f"more than {MOST_TOKENS}"
            )
        if _answer(lm, replay.ids, len(replay.answer_ids)).ids.tolist() != replay.answer_ids:
            others.append(replay)
        on_one(number)
    return others


_REPLAY = TypeAdapter(Replay)


def read_replays(folder: Path) -> list[Replay]:
    """The stored answers of an expert; [] when there are none. Raises ExpertError for a line that is none."""
    return read_jsonl(folder / REPLAY, _REPLAY)
