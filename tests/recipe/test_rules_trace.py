"""Several replies to a prompt, and what contradicts them: votes, and rejection sampling."""

import pytest

from limbeck.recipe.rules.check import check_static
from tests.recipes import tiny_recipe

VOTES = "trace.target.kind=votes"
MANY = "trace.mode={kind: generate, n: 5}"
TEACHER = "objective.position_weights.teacher={certain: 0.5, unsure: 1}"


@pytest.mark.parametrize(
    ("overrides", "where", "message"),
    [
        ([], "trace.target.kind", "Set it to generate"),
        (["trace.mode.kind=generate"], "trace.mode.n", "at least 2"),
        ([MANY, "objective.temperature=2"], "objective.temperature", "set it to 1"),
        ([MANY, TEACHER], "objective.position_weights.teacher", "remove it"),
        ([MANY, "objective.divergence.kind=reverse_kl"], "objective.divergence", "stored votes target"),
    ],
)
def test_contradictions(overrides, where, message):
    found = {problem.where: problem.message for problem in check_static(tiny_recipe(VOTES, *overrides))}
    assert message in found[where]


def test_sound_votes_have_no_problem():
    assert check_static(tiny_recipe(VOTES, MANY)) == []
    assert check_static(tiny_recipe(VOTES, MANY, "objective.ce_weight=0.3")) == []


JUDGED = "trace.mode.rejection.verifier={kind: judge, path: x}"
REJECTION = "trace.mode={kind: generate, n: 4, rejection: {verifier: {kind: exact}, num_correct: 2}}"
TEXT = "trace.target.kind=text"


@pytest.mark.parametrize(
    ("overrides", "where", "message"),
    [
        ([REJECTION, TEXT, "trace.mode.rejection.num_correct=4"], "trace.mode.rejection.num_correct", "is ever spared"),
        ([REJECTION, VOTES], "trace.mode.rejection", "votes are shares of all"),
        ([REJECTION, TEXT, JUDGED], "trace.mode.rejection.verifier.kind", "one"),
        ([REJECTION, TEXT, "teacher={kind: openai, model: m, mode: batch}"], "trace.mode.rejection", "a batch takes"),
    ],
)
def test_asking_until_enough_are_right(overrides, where, message):
    found = {problem.where: problem.message for problem in check_static(tiny_recipe(*overrides))}
    assert message in found[where]


def test_asking_until_enough_can_be_sound():
    assert check_static(tiny_recipe(REJECTION)) == []
