"""Generated problems: answers and steps by an evaluator of its own, and parts that never meet."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.synthetic import ALPHABET, PARTS, SyntheticProblem, make_problem, part_of, read_problems
from limbeck.recipe import ProblemsSource

FAMILIES = st.sampled_from(["chain", "sum", "story"])
LEVELS = st.integers(1, 9)
SEEDS = st.integers(0, 10**6)


def evaluate(prompt: str) -> int:
    """What the problem asks for, by regular expressions and Python's integers."""
    if prompt.endswith("now?\n"):
        return evaluate_story(prompt)
    chain = re.fullmatch(r"(\d+)((?:[-+*]\d+)+) mod (\d+)\n", prompt)
    if chain is None:
        first, second = re.fullmatch(r"(\d+)\+(\d+)\n", prompt).groups()  # type: ignore[union-attr]
        return int(first) + int(second)
    text = chain[1]
    for sign, operand in re.findall(r"([-+*])(\d+)", chain[2]):
        text = f"({text}){sign}{operand}"
    return eval(text) % int(chain[3])  # digits, signs and brackets only


def evaluate_story(prompt: str) -> int:
    """What is left at the end of a story, sentence by sentence."""
    hero, value = re.match(r"(\w+) has (\d+) \w+\.", prompt).groups()  # type: ignore[union-attr]
    value = int(value)
    for sentence in re.findall(r"[^.?]+[.?]", prompt)[1:-1]:
        number = int(re.search(r"\d+", sentence)[0])  # type: ignore[index]
        if "gives " + hero in sentence:
            value += number
        elif hero + " gives" in sentence:
            value -= number
        elif "times as many" in sentence:
            value *= number
        else:
            assert "shares them equally" in sentence and value % number == 0
            value //= number
    assert value > 0
    return value


def check_steps(problem: SyntheticProblem) -> None:
    modulus = re.search(r"mod (\d+)", problem.prompt)
    for step in problem.steps:
        left, right = step.split("=")
        value = eval(left)
        assert int(right) == (value % int(modulus[1]) if modulus else value)
    if modulus or problem.family == "story":  # each step goes on from the one before, and the last is the answer
        results = [step.split("=")[1] for step in problem.steps]
        starts = [re.match(r"\d+", step)[0] for step in problem.steps]  # type: ignore[index]
        assert starts == [re.search(r"\d+", problem.prompt)[0], *results[:-1]]  # type: ignore[index]
        assert results[-1] == problem.answer
    else:
        digits = [step.split("=")[1][-1] for step in problem.steps]
        last = problem.steps[-1].split("=")[1]
        assert last[:-1] + "".join(reversed(digits)) == problem.answer.zfill(len(last[:-1]) + len(digits))


@given(FAMILIES, LEVELS, SEEDS, st.integers(0, 10**6), st.integers(0, PARTS - 1))
def test_answers_and_steps_are_right(family: str, level: int, seed: int, index: int, part: int) -> None:
    problem = make_problem(family, level, seed=seed, index=index, part=part)
    assert int(problem.answer) == evaluate(problem.prompt)
    assert len(problem.steps) == level
    check_steps(problem)
    assert problem.worked.startswith("<think>") and problem.worked.endswith(f"</think>{problem.answer}")
    if problem.family != "story":
        assert set(problem.prompt + problem.worked.replace("<think>", "").replace("</think>", "")) <= set(ALPHABET)
    assert part_of(problem.prompt.rstrip("\n")) == part


@given(FAMILIES, LEVELS, SEEDS, st.integers(0, 10**6))
def test_a_problem_is_a_pure_function(family: str, level: int, seed: int, index: int) -> None:
    first, second = (make_problem(family, level, seed=seed, index=index, part=1) for _ in range(2))
    assert first == second


def test_known_problems_stay_what_they_are() -> None:
    """Stores and figures depend on them."""
    chain, total = (make_problem(family, 4, seed=0, index=0) for family in ("chain", "sum"))
    assert chain.prompt + chain.worked == "8*6+4-6+8 mod 10\n<think>8*6=8;8+4=2;2-6=6;6+8=4</think>4"
    assert total.prompt + total.worked == "7165+3072\n<think>5+2=7;6+7=13;1+0+1=2;7+3=10</think>10237"


def prompts(part: int, seed: int, family: str = "chain") -> set[str]:
    source = ProblemsSource(family=family, levels=(2, 3), count=400, seed=seed, part=part)  # type: ignore[arg-type]
    return {str(example.prompt) for example in read_problems(source)}


@pytest.mark.parametrize("family", ["chain", "sum"])
def test_parts_are_disjoint_whatever_the_seed(family: str) -> None:
    drawn = [set.union(*(prompts(part, seed, family) for seed in range(3))) for part in range(PARTS)]
    for one in range(PARTS):
        for other in range(one):
            assert not drawn[one] & drawn[other]
    assert prompts(0, 0, family) != prompts(0, 1, family)


def test_small_levels_do_meet_within_a_part() -> None:
    """Otherwise the test above would say nothing about parts."""
    assert prompts(0, 0) & prompts(0, 1)


def test_a_source_gives_levels_in_turn_with_references() -> None:
    worked = list(read_problems(ProblemsSource(levels=(1, 4), count=6)))
    bare = list(read_problems(ProblemsSource(levels=(1, 4), count=6, completion="answer")))
    assert [example.topic for example in worked] == ["level 1", "level 4"] * 3
    for long, short in zip(worked, bare, strict=True):
        assert long.prompt == short.prompt
        assert short.completion == short.reference == long.reference
        assert str(long.completion).endswith(f"</think>{long.reference}")


@pytest.mark.parametrize(("family", "level", "part"), [("poem", 1, 0), ("chain", 0, 0), ("chain", 1, PARTS)])
def test_what_does_not_exist_is_refused(family: str, level: int, part: int) -> None:
    with pytest.raises(ValueError, match="there is no problem"):
        make_problem(family, level, seed=0, index=0, part=part)
