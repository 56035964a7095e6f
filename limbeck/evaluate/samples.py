"""Side-by-side greedy answers, every token marked with what the teacher would have written in its place."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from limbeck.losses.chunked import iter_logits
from limbeck.text.packing import pack
from limbeck.text.reply_spans import common_prefix
from limbeck.types import Row, Sampling, Trace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from limbeck.models.hf import HfLM

TEXT_PROMPT = 64  # most tokens of a plain-text prompt
LONGEST_PROMPT = 1024
CONTEXT = 8  # tokens before an answer that its first token is decoded with
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class SamplePrompt:
    """What is continued: `ids` and its `text`; `truth` is the text that really follows."""

    id: str
    topic: str
    ids: np.ndarray
    text: str
    truth: str


class AnswerPiece(NamedTuple):
    """A run of tokens that is whole characters (usually one token). `agrees`: the teacher, reading the same words,
    would have written these tokens; `chance` is its probability of them, `instead` what it would have written first."""

    text: str
    agrees: bool
    chance: float
    instead: str


@dataclass(frozen=True)
class SampleAnswer:
    """One model's answer to one prompt. `finish_reason` is "stop" or "length"."""

    pieces: tuple[AnswerPiece, ...]
    finish_reason: str


class SampleAnswers(NamedTuple):
    """`by_prompt[i][model]`, and the tokens per second of each model while it wrote all answers as one batch."""

    prompts: list[SamplePrompt]
    by_prompt: list[dict[str, SampleAnswer]]
    tokens_per_second: dict[str, float]


def choose_prompts(
    rows: Sequence[Row | Trace], tokenizer: PreTrainedTokenizerBase, num: int, *, longest: int, seed: int
) -> list[SamplePrompt]:
    """`num` prompts from different rows, over as many topics as there are; deterministic given `seed`.

    A plain text is continued from the middle (after at most TEXT_PROMPT tokens), a conversation from its first reply.
    Rows whose prompt is longer than `longest` tokens are left out.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    asked: set[str] = set()
    of_topic: dict[str, int] = {}
    ranked: list[tuple[int, int, Row | Trace]] = []
    for place, index in enumerate(order.tolist()):
        row = rows[index]
        prompt = row.row_id if isinstance(row, Trace) else row.id  # several replies to one prompt are one prompt
        if row.spans and prompt not in asked and _cut(row) <= min(longest, LONGEST_PROMPT):
            asked.add(prompt)
            ranked.append((of_topic.get(row.topic, 0), place, row))
            of_topic[row.topic] = of_topic.get(row.topic, 0) + 1
    chosen = [row for _, _, row in sorted(ranked, key=lambda entry: entry[:2])[:num]]
    return [_prompt(row, tokenizer) for row in chosen]


def _cut(row: Row | Trace) -> int:
    """The number of tokens of a row that are its prompt."""
    start, end = row.spans[0]
    if start == 1 and end == len(row.ids):
        return max(min(len(row.ids) // 2, TEXT_PROMPT), 1)
    return start


def _prompt(row: Row | Trace, tokenizer: PreTrainedTokenizerBase) -> SamplePrompt:
    cut, (start, end) = _cut(row), row.spans[0]
    truth = row.ids[cut : end if start > 1 else len(row.ids)]
    return SamplePrompt(row.id, row.topic, row.ids[:cut], _decode(tokenizer, row.ids[:cut]), _decode(tokenizer, truth))


def write_answers(
    teacher: HfLM | None, students: Mapping[str, HfLM], prompts: Sequence[SamplePrompt], *, num_tokens: int
) -> SampleAnswers:
    """Greedy answers of at most `num_tokens` tokens of the teacher (where there is one) and every student to all
    prompts. Without a teacher nothing is marked."""
    models = dict(students) if teacher is None else {"teacher": teacher, **students}
    sampling = Sampling(temperature=0.0, max_tokens=num_tokens)
    by_prompt: list[dict[str, SampleAnswer]] = [{} for _ in prompts]
    rates: dict[str, float] = {}
    if not prompts:
        return SampleAnswers([], [], {})
    for name, lm in models.items():
        begun = time.perf_counter()
        replies = [each[0] for each in lm.generate([prompt.ids for prompt in prompts], sampling)]
        # The batch runs until its longest answer ends: answers that ended before cost the same.
        written = len(prompts) * max(len(reply.ids) for reply in replies)
        rates[name] = written / max(time.perf_counter() - begun, 1e-9)
        for number, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
            pieces: tuple[AnswerPiece, ...] = ()
            if len(reply.ids):
                unmarked = (AnswerPiece(_decode(lm.tokenizer, reply.ids), True, 1.0, ""),)
                pieces = unmarked if teacher is None else mark(teacher, prompt.ids, reply.ids)
            by_prompt[number][name] = SampleAnswer(pieces, reply.finish_reason)
    return SampleAnswers(list(prompts), by_prompt, rates)


def mark(teacher: HfLM, prompt_ids: np.ndarray, reply_ids: np.ndarray) -> tuple[AnswerPiece, ...]:
    """The reply's pieces, each with the teacher's own choice after the prompt and the reply so far."""
    ids = np.concatenate([prompt_ids, reply_ids]).astype(np.int32)
    row = Row("answer", "heldout", "", "", ids, ((len(prompt_ids), len(ids)),), "answer")
    batch = pack([row], device=teacher.device)
    top, chance = [], []
    for part, logits_nV in iter_logits(teacher.hidden(batch), teacher.head):
        labels_n1 = batch.labels_N[part][:, None].clamp_max(logits_nV.shape[1] - 1)
        chance += logits_nV.log_softmax(-1).gather(1, labels_n1)[:, 0].exp().tolist()
        top += logits_nV.argmax(-1).tolist()
    pieces, start = [], 0
    for end, text in whole_characters(teacher.tokenizer, prompt_ids, reply_ids):
        agrees = all(int(reply_ids[i]) == top[i] for i in range(start, end))
        instead = _decode(teacher.tokenizer, [top[start]])
        pieces.append(AnswerPiece(text, agrees, float(np.prod(chance[start:end])), instead))
        start = end
    return tuple(pieces)


def whole_characters(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: np.ndarray, reply_ids: np.ndarray
) -> list[tuple[int, str]]:
    """The reply cut where characters end: (number of tokens so far, text of the piece). One character can take several
    tokens; how a token is spelt can depend on those before it, so it is decoded after the end of the prompt."""
    before = [int(token) for token in prompt_ids[-CONTEXT:]]
    tokens = [int(token) for token in reply_ids]
    done = _decode(tokenizer, before)
    pieces: list[tuple[int, str]] = []
    for end in range(1, len(tokens) + 1):
        text = _decode(tokenizer, before + tokens[:end])
        if text.endswith(REPLACEMENT) and end < len(tokens):
            continue
        pieces.append((end, text[common_prefix(done, text) :]))
        done = text
    return pieces


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int] | np.ndarray) -> str:
    """Special tokens stay visible, and no space is tidied away."""
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
