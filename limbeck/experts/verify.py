"""Whether an expert is what its card says: its files, its greedy answers, its scores."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from limbeck.errors import ExpertError
from limbeck.experts.scoring import REPRODUCED, read_heldout, read_jsonl, score_rows, scores_of
from limbeck.models.open import open_lm
from limbeck.types import Progress, Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from limbeck.experts.registry import Expert
    from limbeck.types import LocalLM, OnProgress, Reply

SLACK = 1e-3
"""Relative: another machine rounds otherwise, and the interval of a single row has no width."""

MOST_DIFFERING = 0.5
"""Share of replayed answers that may differ."""


@dataclass(frozen=True)
class Rescored:
    """A measure as the card has it and as it came out now; `holds` when it lies within the card's interval."""

    metric: str
    value: float
    stated: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        slack = SLACK * abs(self.stated)
        return self.low - slack <= self.value <= self.high + slack


@dataclass(frozen=True)
class Verification:
    """`replayed` answers of which those with the ids `differing` were others now; `rows` scored again; `stated_only`
    are measures of the card that were not measured again, for they need the teacher or its verifier."""

    name: str
    version: str
    fingerprint_same: bool
    replayed: int
    differing: tuple[str, ...]
    rows: int
    scores: tuple[Rescored, ...]
    stated_only: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether this is the model that the card names, scores lie within the card's intervals, and no more than
        MOST_DIFFERING of the answers are others: a machine that rounds otherwise may settle a near tie otherwise. The
        number of those is told in any case."""
        answers = len(self.differing) <= MOST_DIFFERING * self.replayed
        return self.fingerprint_same and answers and all(score.holds for score in self.scores)


def verify_expert(expert: Expert, *, on_progress: OnProgress = lambda _: None) -> Verification:
    """Open an expert (whose files the registry has hashed), replay its answers and score its held-out rows again.

    Raises ExpertError for damaged files, and what `open_lm` raises."""
    lm = open_lm(expert.model_path, dtype=expert.card.dtype)  # the precision that its answers were written in
    replays, rows = read_replays(expert.path), read_heldout(expert.path)
    others = differing(lm, replays, counted(on_progress, "replay", len(replays), "answers"))
    found = scores_of(score_rows(lm, rows, counted(on_progress, "score", len(rows), "rows"))) if rows else {}
    stated = expert.card.scores.get("student", {})
    scores = tuple(
        Rescored(name, float(found[name]["value"]), *(float(stated[name][key]) for key in ("value", "low", "high")))
        for name in REPRODUCED
        if name in found and name in stated
    )
    return Verification(
        name=expert.name,
        version=expert.version,
        fingerprint_same=expert.card.fingerprint in ("", lm.fingerprint),
        replayed=len(replays),
        differing=tuple(replay.id for replay in others),
        rows=len(rows),
        scores=scores,
        stated_only=tuple(name for name in stated if name not in {score.metric for score in scores}),
    )


def counted(on_progress: OnProgress, stage: str, total: int, unit: str) -> Callable[[int], None]:
    """Progress by number, from 0."""
    begun = time.monotonic()

    def tell(number: int) -> None:
        rate = (number + 1) / max(time.monotonic() - begun, 1e-9)
        on_progress(Progress(stage, number + 1, total, unit, rate, (total - number - 1) / rate))

    return tell


# ---- greedy answers, given again: the same weights run in the same way write the same tokens -------------------------

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
