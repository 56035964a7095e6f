"""What a run will cost: stages, requests, room on this machine."""

import pytest

from limbeck.check import costs, opened
from limbeck.check.opened import Opened
from limbeck.check.recipe import check_recipe
from limbeck.config.problems import Problem


@pytest.mark.slow
def test_the_estimate_sees_all_rows(recipe, monkeypatch):
    seen = []

    def estimate_stages(asked, teacher, rows):
        seen.append((asked, teacher.vocab, len(rows)))
        return {"label": {"seconds": 1.0, "peak_bytes": 2, "disk_bytes": 3}}

    monkeypatch.setattr(opened, "estimate_stages", estimate_stages)
    found = check_recipe(recipe)
    assert found.problems == []
    assert found.estimate["label"]["seconds"] == 1.0
    assert seen == [(recipe, 384, 64)]
    assert check_recipe(recipe.override("student.layers=9")).estimate == {}, "not with problems"


@pytest.mark.slow
def test_more_disk_than_there_is(recipe, monkeypatch):
    cost = {"seconds": 1.0, "peak_bytes": 2**60, "disk_bytes": 2**60}
    monkeypatch.setattr(opened, "estimate_stages", lambda *_: {"label": cost})
    found = check_recipe(recipe)
    assert [item.where for item in found.problems] == ["trace.target"]
    assert "Free some space" in found.problems[0].message
    assert any("activation_checkpointing=true" in fact for fact in found.facts)


TEACHER = "teacher={kind: openai, base_url: 'http://127.0.0.1:9/v1', model: m, api_key_env: null}"


@pytest.fixture
def asked(chats, tiny_llama):
    """One reply to each row: nothing is probed, so nothing needs to answer."""
    student = f"student={{kind: pretrained, path: {tiny_llama}}}"
    mode = "trace={mode: {kind: generate, max_tokens: 16}, target: {kind: text}}"
    return chats.override(
        TEACHER, student, mode, "objective={ce_weight: 1.0}", "evaluate.answers=0", "data.max_length=100"
    )


def test_requests_to_an_endpoint(asked):
    found = check_recipe(asked)
    assert found.problems == [] and set(found.estimate) == {"data"}
    cost = found.requests
    assert cost.requests == 32 and cost.most_reply_tokens == 32 * 16
    assert cost.cost_most is None
    assert check_recipe(asked, estimate=False).requests is None


def test_only_training_rows_are_scored(asked, monkeypatch):
    seen, count = [], costs.estimate_requests
    monkeypatch.setattr(costs, "estimate_requests", lambda of, rows: seen.extend(rows) or count(of, rows))
    scored = asked.override("trace={mode: {kind: score}, target: {kind: top_k, k: 5}}")
    assert list(costs.endpoint_requests(scored, Opened(scored, lambda _: None)))
    assert seen and {row.split for row in seen} == {"train"}


@pytest.mark.slow
def test_a_local_teacher_is_asked_nothing(recipe, monkeypatch):
    monkeypatch.setattr(opened, "estimate_stages", lambda *_: {})
    assert check_recipe(recipe).requests is None


@pytest.mark.slow
def test_a_limit_that_ends_the_job_early(asked):
    prices = asked.override("teacher.prices={input: 1000000, output: 0}")
    likely = check_recipe(prices).requests.cost_likely
    assert check_recipe(prices.override(f"teacher.max_cost={likely + 1}")).warnings == []
    (doubt,) = check_recipe(prices.override(f"teacher.max_cost={likely - 1}")).warnings
    assert isinstance(doubt, Problem) and doubt.where == "teacher.max_cost" and f"{likely:.2f}" in doubt.message
