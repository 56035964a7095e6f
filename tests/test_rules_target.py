"""Votes and what contradicts them."""

import pytest

from limbeck.rules import check_static
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
