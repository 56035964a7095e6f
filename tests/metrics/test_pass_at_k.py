"""Scores of several replies to each problem, against enumeration, and intervals against simulation."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.metrics.pass_at_k import (
    Attempt,
    compare_attempts,
    final_answer,
    inherited,
    majority,
    pass_at_k,
    per_problem,
)


def attempt(answer: str | None, right: str = "7", *, finish: str = "stop", tokens: int = 3) -> Attempt:
    return Attempt(answer or "", answer, answer == right, finish, tokens)


@given(st.lists(st.booleans(), min_size=1, max_size=7))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_reply(right: list[bool]) -> None:
    for k in range(1, len(right) + 1):
        subsets = list(itertools.combinations(right, k))
        assert pass_at_k(len(right), sum(right), k) == pytest.approx(np.mean([any(subset) for subset in subsets]))


def test_pass_at_k_is_unbiased() -> None:
    """The mean over draws of n replies is 1 - (1 - p)^k exactly, unlike the plug-in 1 - (1 - c/n)^k."""
    n, k, p = 6, 3, 0.3
    chances = [np.prod([p if bit else 1 - p for bit in bits]) for bits in itertools.product([0, 1], repeat=n)]
    counts = [sum(bits) for bits in itertools.product([0, 1], repeat=n)]
    mean = sum(chance * pass_at_k(n, count, k) for chance, count in zip(chances, counts, strict=True))
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)
    plug_in = sum(chance * (1 - (1 - count / n) ** k) for chance, count in zip(chances, counts, strict=True))
    assert abs(plug_in - (1 - (1 - p) ** k)) > 0.01


@pytest.mark.parametrize(("n", "right", "k"), [(4, 1, 0), (4, 1, 5), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_what_cannot_be(n: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match="k is 1 to n"):
        pass_at_k(n, right, k)


@given(st.lists(st.sampled_from(["7", "8", "9", None]), min_size=1, max_size=7))
def test_the_majority_breaks_ties_by_lot(answers: list[str | None]) -> None:
    votes = Counter(answer for answer in answers if answer is not None)
    winners = [answer for answer in votes if votes[answer] == max(votes.values())]
    expected = sum(winner == "7" for winner in winners) / len(winners) if winners else 0.0
    assert majority([attempt(answer) for answer in answers]) == pytest.approx(expected)


def test_answers_written_alike_and_judged_differently_count_their_share() -> None:
    both = [Attempt("a", "7", True, "stop", 1), Attempt("b", "7", False, "stop", 1)]
    assert majority(both) == 0.5


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("<think>1+2=3</think>3", "3"),
        ("<think>a</think>b</think>\n 12 \n", "12"),
        ("no thinking: 4", "no thinking: 4"),
        ("<think>1+2=3", None),
        ("<think>1+2=3</think>  ", None),
        ("", None),
        (r"<think>x</think>So it is \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"<think>so \boxed{1}, no, \boxed{2}</think>", "2"),
        (r"</think>first \boxed{1}, then \boxed{2}", "2"),
        (r"</think>cut off \boxed{1", r"cut off \boxed{1"),
    ],
)
def test_final_answers(reply: str, answer: str | None) -> None:
    assert final_answer(reply) == answer


def test_scores_per_problem() -> None:
    attempts = [
        [attempt("7"), attempt("8"), attempt("7", finish="length", tokens=9), attempt(None)],
        [attempt(None), attempt(None), attempt("1"), Attempt("?", "7", None, "stop", 1)],
    ]
    found = per_problem(attempts, (1, 2))
    assert found["pass@1"].tolist() == [0.5, 0.0]
    assert found["pass@2"].tolist() == pytest.approx([5 / 6, 0.0])
    assert found["cons@4"].tolist() == [1.0, 0.0]
    assert found["truncated"].tolist() == [0.25, 0.0]
    assert found["no_answer"].tolist() == [0.25, 0.5]
    assert found["unjudged"].tolist() == [0.0, 0.25]
    assert found["tokens"].tolist() == [4.5, 2.5]


def test_one_reply_each_has_no_vote() -> None:
    assert "cons@1" not in per_problem([[attempt("7")]], (1,))


@pytest.mark.slow
def test_intervals_cover_the_truth() -> None:
    """95% intervals of pass@1 over 60 problems of unequal difficulty hold the true mean in about 95% of simulations."""
    generator = np.random.default_rng(0)
    n, problems, trials = 4, 60, 300
    covered = difference_covered = 0
    for trial in range(trials):
        chance_R = generator.beta(1.0, 1.0, size=problems)  # mean 0.5: problems are a sample of all problems
        made = {}
        for name, loss in (("student", 0.0), ("twin", 0.2)):
            right_Rn = generator.random((problems, n)) < chance_R[:, None] * (1 - loss)
            made[name] = [[attempt("7" if ok else "0") for ok in row] for row in right_Rn]
        found = compare_attempts(made, ks=(1,), pair=("student", "twin"), resamples=300, seed=trial)
        low, high = found["models"]["student"]["pass@1"][1:]
        covered += low <= 0.5 <= high
        low, high = found["difference"]["pass@1"][1:]
        difference_covered += low <= 0.1 <= high
    for share in (covered / trials, difference_covered / trials):
        assert 0.90 <= share <= 0.985


def test_inheritance_beyond_chance_is_seen() -> None:
    """A student that repeats half of its teacher's errors, and one that errs as often on its own."""
    generator = np.random.default_rng(1)
    teacher, copies, own = [], [], []
    for _ in range(400):
        wrong = str(generator.integers(10, 20))
        teacher.append([attempt(wrong if generator.random() < 0.5 else "7") for _ in range(2)])
        others = [str(generator.integers(10, 20)) for _ in range(2)]
        copies.append([attempt(wrong if generator.random() < 0.5 else "7") for _ in range(2)])
        own.append([attempt(other if generator.random() < 0.5 else "7") for other in others])
    found = compare_attempts({"teacher": teacher, "student": copies, "twin": own}, ks=(1,), teacher="teacher")
    student, twin = found["inherited"]["student"], found["inherited"]["twin"]
    assert student["repeated"][0] == pytest.approx(0.5, abs=0.06)
    assert student["chance"][0] == pytest.approx(0.05, abs=0.02)
    assert student["difference"][1] > 0.3
    assert twin["difference"][1] < 0 < twin["difference"][2]


def test_inheritance_by_hand() -> None:
    teacher = [[attempt("1"), attempt("7")], [attempt("2"), attempt("3")]]
    student = [[attempt("1"), attempt("2")], [attempt("2"), attempt("7")]]
    found = inherited(teacher, student)
    assert found.errors_R.tolist() == [1.0, 2.0]
    assert found.repeated_R.tolist() == [0.5, 0.5]
    # Problem 0: both replies are wrong; elsewhere the student said "2" once, never "1". Problem 1: one wrong reply of
    # two; elsewhere it said "1" and "2" once each: "2" is a half, "3" never.
    assert found.chance_R.tolist() == [0.0, 0.25]


def test_a_faultless_teacher_leaves_nothing_to_inherit() -> None:
    found = compare_attempts({"teacher": [[attempt("7")]], "student": [[attempt("1")]]}, ks=(1,), teacher="teacher")
    assert found["inherited"] == {"student": None}


def test_unequal_exams_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same problems"):
        compare_attempts({"a": [[attempt("7")]], "b": [[attempt("7")], [attempt("7")]]}, ks=(1,))
