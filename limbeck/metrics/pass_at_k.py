"""What several replies to each problem say about a model: pass@k, majority vote, errors repeated from a teacher.

Scores are per problem, so that problems, never replies, are resampled: `R` problems, `n` replies to each.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from limbeck.metrics.intervals import paired_bootstrap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from limbeck.metrics.intervals import Bootstrap

BOXED = "\\boxed{"


@dataclass(frozen=True)
class Attempt:
    """One reply and what became of it. `answer` is its final answer, None when it has none (a format error); `ok` is
    the verdict, None when the reply could not be judged: it counts as wrong, and is counted apart."""

    text: str
    answer: str | None
    ok: bool | None
    finish_reason: str  # "stop" or "length"
    num_tokens: int


Attempts = list[list[Attempt]]
"""The replies to each problem, the same number to all of them."""


def final_answer(reply: str) -> str | None:
    """What a reply ends with: the content of the last \\boxed{} after its thinking, or else all that stands there, on
    one line. None when the thinking was never closed, or nothing follows it."""
    thinking, closed, rest = reply.rpartition("</think>")
    if not closed and "<think>" in reply:
        return None
    boxed = last_boxed(rest) or (last_boxed(thinking) if not rest.strip() else None)
    text = " ".join((boxed or rest).split())
    return text or None


def last_boxed(text: str) -> str | None:
    """The content of the last \\boxed{}, with balanced braces; None without one."""
    start = text.rfind(BOXED)
    if start < 0:
        return None
    depth = 1
    for end in range(start + len(BOXED), len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start + len(BOXED) : end]
    return None


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that at least one of k replies, drawn without replacement from n of which `right` are right, is right:
    the unbiased estimate of pass@k of Chen et al. 2021 (arXiv 2107.03374, equation 1): 1 - C(n - c, k) / C(n, k).

    Raises ValueError unless 1 <= k <= n and 0 <= right <= n."""
    if not (1 <= k <= n and 0 <= right <= n):
        raise ValueError(f"pass@{k} of {right} right replies among {n}: k is 1 to n, right is 0 to n")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def majority(attempts: Sequence[Attempt]) -> float:
    """Chance that the most frequent answer is right (cons@n, self-consistency: arXiv 2203.11171). Ties are broken by
    lot, so each of the tied answers counts its share; replies without an answer do not vote; without a vote it is 0.

    Equal answers are equal text; one whose replies were judged differently counts the share of its right replies."""
    votes = Counter(attempt.answer for attempt in attempts if attempt.answer is not None)
    most = max(votes.values(), default=0)
    tied = [answer for answer, number in votes.items() if number == most]
    shares = [np.mean([one.ok is True for one in attempts if one.answer == answer]) for answer in tied]
    return float(np.mean(shares)) if shares else 0.0


class Inherited(NamedTuple):
    """Per problem: the teacher's wrong answers; the share of the student's replies that give the same one, summed over
    them; and what chance alone would have repeated."""

    errors_R: np.ndarray
    repeated_R: np.ndarray
    chance_R: np.ndarray


def inherited(teacher: Attempts, student: Attempts) -> Inherited:
    """How often a student gives the very wrong answer that its teacher gave.

    Chance is what a student as often wrong on the same problem would repeat if its wrong answers were drawn from those
    that it gives to other problems: it knows which problems are hard, and which numbers come up often."""
    wrong = [[one.answer for one in replies if one.ok is not True and one.answer is not None] for replies in student]
    pool = Counter(answer for answers in wrong for answer in answers)
    columns = np.zeros((3, len(teacher)))
    for place, (theirs, ours) in enumerate(zip(teacher, student, strict=True)):
        here = Counter(wrong[place])
        right = {one.answer for one in (*theirs, *ours) if one.ok is True}
        elsewhere = {answer: number - here[answer] for answer, number in pool.items() if answer not in right}
        total = sum(elsewhere.values())
        for one in theirs:
            if one.ok is True or one.answer is None:
                continue
            by_chance = elsewhere.get(one.answer, 0) / total if total else 0.0
            columns[:, place] += 1.0, here[one.answer] / len(ours), by_chance * len(wrong[place]) / len(ours)
    return Inherited(*columns)


def per_problem(attempts: Attempts, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """The scores of one model by name, each [R]: pass@k, cons@n, and the shares that were cut off, had no answer, or
    could not be judged, and the mean length in tokens."""
    n = len(attempts[0])
    right_R = [sum(one.ok is True for one in replies) for replies in attempts]
    scores = {f"pass@{k}": [pass_at_k(n, right, k) for right in right_R] for k in ks}
    if n > 1:
        scores[f"cons@{n}"] = [majority(replies) for replies in attempts]
    scores["truncated"] = [_share(one.finish_reason == "length" for one in replies) for replies in attempts]
    scores["no_answer"] = [_share(one.answer is None for one in replies) for replies in attempts]
    scores["unjudged"] = [_share(one.ok is None for one in replies) for replies in attempts]
    scores["tokens"] = [_share(one.num_tokens for one in replies) for replies in attempts]
    return {name: np.asarray(values, dtype=np.float64) for name, values in scores.items()}


def _share(values: Any) -> float:
    return float(np.mean([float(value) for value in values]))


def compare_attempts(
    attempts: Mapping[str, Attempts],
    *,
    ks: Sequence[int],
    teacher: str | None = None,
    pair: tuple[str, str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores of all models with 95% intervals over problems ([mean, low, high]); the paired difference of `pair`; and,
    against `teacher`, the share of its errors that each other model repeats, beside chance. JSON-able.

    Raises ValueError when models have different numbers of problems or replies, or there are none."""
    sizes = {tuple(len(replies) for replies in found) for found in attempts.values()}
    if len(sizes) != 1 or not (size := sizes.pop()) or len(set(size)) != 1 or not size[0]:
        raise ValueError("models are compared on the same problems, with the same number of replies to each")
    scores = {name: per_problem(found, ks) for name, found in attempts.items()}
    names = list(next(iter(scores.values())))
    ones_R = np.ones(len(size))
    pair = pair if pair is not None and set(pair) <= set(attempts) else None
    found: dict[str, Any] = {"problems": len(size), "n": size[0], "metrics": names, "models": {}, "difference": {}}
    found["models"] = {name: {} for name in attempts}
    for metric in names:
        sums = {name: scores[name][metric] for name in attempts}
        drawn = paired_bootstrap(sums, ones_R, pair=pair, resamples=resamples, seed=seed)
        for name, interval in drawn.models.items():
            found["models"][name][metric] = list(interval)
        if drawn.difference is not None:
            found["difference"][metric] = list(drawn.difference)
    if teacher is not None and teacher in attempts:
        others = {name: inherited(attempts[teacher], ours) for name, ours in attempts.items() if name != teacher}
        found["inherited"] = {name: _inheritance(one, resamples, seed) for name, one in others.items()}
    return found


def _inheritance(found: Inherited, resamples: int, seed: int) -> dict[str, Any] | None:
    """None when the teacher made no error."""
    at = found.errors_R > 0
    if not at.any():
        return None
    sums = {"repeated": found.repeated_R[at], "chance": found.chance_R[at]}
    drawn: Bootstrap = paired_bootstrap(
        sums, found.errors_R[at], pair=("repeated", "chance"), resamples=resamples, seed=seed
    )
    intervals = {name: list(interval) for name, interval in drawn.models.items()}
    return {"errors": int(found.errors_R.sum()), **intervals, "difference": list(drawn.difference or ())}
