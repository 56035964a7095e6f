"""Problems answered by several models: replies are sampled, judged, kept on disk, and compared.

The replies of one model are one file, written whole: a model that was sampled is not sampled again, whatever happens to
those after it.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.errors import DataError, Stopped
from limbeck.metrics.pass_at_k import Attempt, final_answer
from limbeck.system.atomic import atomic_write, fingerprint
from limbeck.system.sealed import read_sealed, sealed_line
from limbeck.types import Progress, Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from limbeck.metrics.pass_at_k import Attempts
    from limbeck.types import Generator, OnProgress, Reply, Row

    Judge = Callable[[Sequence[tuple[str, str]]], Sequence[bool | None]]
    """Verdicts on pairs of (reply, reference): right, wrong, or None where it cannot be said."""


@dataclass(frozen=True)
class Question:
    """A problem as a model reads it: `ids` end where the reply begins; `reference` is what a right answer is compared
    with."""

    id: str
    ids: np.ndarray  # int32 [T]
    prompt: str
    reference: str
    topic: str = ""


@dataclass(frozen=True)
class TaskSettings:
    """How questions are put: decoding, how many tokens one batch may take, what makes a verdict (its name is part of
    what is remembered of a file of replies), and what the answer of a reply is, by which votes are counted."""

    sampling: Sampling
    judge: Judge
    judged_by: str
    extract: Callable[[str], str | None] = final_answer
    batch_tokens: int = 32768


def questions_of(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[Question]:
    """One question for each row that has a reference. A row's prompt is what stands before its first reply.

    Raises DataError when no row has a reference."""
    found = []
    for row in rows:
        start = row.spans[0][0] if row.spans else len(row.ids)
        if row.reference and start > 1:
            prompt = str(tokenizer.decode(row.ids[:start], clean_up_tokenization_spaces=False))
            found.append(Question(row.id, row.ids[:start], prompt, row.reference, row.topic))
    if not found:
        raise DataError(
            f"none of {len(rows)} held-out rows has a prompt and a reference to compare answers with. Name the column "
            "(data.source.reference), or give evaluate.tasks a source of its own."
        )
    return found


def answer_questions(
    models: Mapping[str, Generator],
    questions: Sequence[Question],
    exam: TaskSettings,
    folders: Sequence[Path],
    *,
    on_progress: OnProgress,
    stop_asked: Callable[[], bool],
) -> dict[str, Attempts]:
    """Every model's judged replies to all questions, as in FOLDER/MODEL.jsonl of the first folder: read there or in
    another folder where they are current, sampled where not. Raises Stopped between batches; models that are done stay
    done."""
    found: dict[str, Attempts] = {}
    for name, lm in models.items():
        key = exam_key(lm, questions, exam)
        path, *others = [folder / f"{name}.jsonl" for folder in folders]
        current = [file for file in (path, *others) if read_attempts(file, key) is not None]
        if not current:
            replies = ask(lm, questions, exam, stage=name, on_progress=on_progress, stop_asked=stop_asked)
            known = judge_replies(questions, replies, exam)
            atomic_write(path, attempts_jsonl(key, lm.name, questions, known))
        elif current[0] != path:
            atomic_write(path, current[0].read_bytes())
        found[name] = read_attempts(path, key) or []
    return found


def exam_key(lm: Generator, questions: Sequence[Question], exam: TaskSettings) -> str:
    """All that an LM's judged replies depend on."""
    asked = [[one.id, one.ids.tolist(), one.reference] for one in questions]
    return fingerprint(lm.fingerprint, asked, asdict(exam.sampling), exam.judged_by, exam.batch_tokens)


def ask(
    lm: Generator,
    questions: Sequence[Question],
    exam: TaskSettings,
    *,
    stage: str,
    on_progress: OnProgress,
    stop_asked: Callable[[], bool],
) -> list[list[Reply]]:
    """`exam.sampling.n` replies to each question, in the order of the questions. Questions of about one length are
    asked together, so that little is padded and the replies of a batch tend to end together."""
    replies: list[list[Reply]] = [[] for _ in questions]
    done, begun = 0, time.monotonic()
    for batch in batches_of(questions, exam):
        if stop_asked():
            raise Stopped("stopped while models answered; models that were done are kept. Run the same command again.")
        seed = int(fingerprint(exam.sampling.seed, [questions[index].id for index in batch])[:15], 16)
        sampling = replace(exam.sampling, seed=seed)
        for index, drawn in zip(batch, lm.generate([questions[index].ids for index in batch], sampling), strict=True):
            replies[index] = drawn
        done += len(batch)
        rate = done / max(time.monotonic() - begun, 1e-9)
        left = (len(questions) - done) / rate
        on_progress(Progress(f"tasks {stage}", done, len(questions), "problems", rate, left))
    return replies


def batches_of(questions: Sequence[Question], exam: TaskSettings) -> list[list[int]]:
    """Which questions are asked together."""
    order = sorted(range(len(questions)), key=lambda index: len(questions[index].ids))
    batches: list[list[int]] = []
    for index in order:  # ascending lengths: the newest is the longest of its batch
        longest = len(questions[index].ids) + exam.sampling.max_tokens
        room = max(exam.batch_tokens // (longest * exam.sampling.n), 1)
        if not batches or len(batches[-1]) >= room:
            batches.append([])
        batches[-1].append(index)
    return batches


def judge_replies(questions: Sequence[Question], replies: Sequence[Sequence[Reply]], exam: TaskSettings) -> Attempts:
    """All replies judged in one go: verifiers that run programs run them side by side."""
    pairs = [(reply.text, one.reference) for one, each in zip(questions, replies, strict=True) for reply in each]
    verdicts = iter(exam.judge(pairs))
    return [
        [
            Attempt(reply.text, exam.extract(reply.text), next(verdicts), reply.finish_reason, len(reply.ids))
            for reply in each
        ]
        for each in replies
    ]


# ---- files -----------------------------------------------------------------------------------------------------------


def attempts_jsonl(key: str, model: str, questions: Sequence[Question], attempts: Attempts) -> bytes:
    """A line that says what the replies depend on, and a line for every reply."""
    lines: list[dict[str, Any]] = [
        {"version": 1, "key": key, "model": model, "problems": len(attempts), "n": len(attempts[0])}
    ]
    for one, replies in zip(questions, attempts, strict=True):
        for draw, attempt in enumerate(replies):
            about = {"problem": one.id, "prompt": one.prompt, "reference": one.reference, "topic": one.topic}
            lines.append({**about, "draw": draw, **asdict(attempt)})
    return b"".join(map(sealed_line, lines))


def read_attempts(path: Path, key: str | None = None) -> Attempts | None:
    """The judged replies of a file; None when there is none, it is damaged, or it was made with something else than
    `key` says."""
    if not path.exists():
        return None
    try:
        head, *lines = [line for _, line in read_sealed(path)]
        n = head["n"]
        if key not in (None, head["key"]) or len(lines) != n * head["problems"]:
            return None
        found = [Attempt(**{name: line[name] for name in Attempt.__dataclass_fields__}) for line in lines]
        return [found[start : start + n] for start in range(0, len(found), n)]
    except (ValueError, KeyError, TypeError):
        return None
