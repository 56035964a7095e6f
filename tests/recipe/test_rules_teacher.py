"""What a recipe may not ask of a teacher behind an endpoint, and what makes it another one."""

import json

import pytest

from limbeck.errors import RecipeError
from limbeck.recipe import OpenAITeacher, Recipe, name_of
from limbeck.recipe.rules.check import check_static
from tests.recipes import tiny_recipe

ENDPOINT = ["teacher={kind: openai, model: m}", "student={kind: pretrained, path: s}", "objective.ce_weight=1"]
GENERATE = ["data.source={kind: files, path: x, prompt: q}", "trace.mode.kind=generate", "trace.target.kind=text"]


def recipe(*overrides: str) -> Recipe:
    return tiny_recipe(*ENDPOINT, *GENERATE, *overrides)


def test_a_sound_one():
    assert check_static(recipe()) == []
    assert check_static(recipe("teacher.prices={input: 1.0, output: 2.0}", "teacher.max_cost=5")) == []


@pytest.mark.parametrize(
    ("overrides", "where", "message"),
    [
        (["trace.mode.kind=score", "data.source.completion=a"], "trace.mode.kind", "Set it to generate"),
        (
            ["trace.target.kind=hybrid", "objective.ce_weight=0"],
            "trace.target.kind",
            "or text",
        ),
        (["teacher.samples_per_request=4"], "teacher.samples_per_request", "only trace.mode.n=1"),
        (["teacher.max_cost=4"], "teacher.max_cost", "without teacher.prices"),
        (["teacher.endpoint=completions", "teacher.system=s"], "teacher.system", "no effect"),
        (["trace.batch_tokens=7"], "trace.batch_tokens", "no forward here"),
        (["student={kind: prune, layers: 2}"], "student.kind", "no layers here"),
    ],
)
def test_one_problem(overrides, where, message):
    [found] = check_static(recipe(*overrides))
    assert found.where == where and message in found.message


@pytest.mark.parametrize("url", ["ftp://x/v1", "x/v1", "https://key@x/v1", "https://x/v1?key=1", "https://x/ v1"])
def test_addresses_that_are_none_or_hold_a_secret(url):
    with pytest.raises(RecipeError, match="teacher.base_url is"):
        recipe(f"teacher.base_url={url!r}")


def test_what_makes_it_another_teacher():
    one = OpenAITeacher(model="m", base_url="http://127.0.0.1:8000/v1/")
    same = OpenAITeacher(model="m", base_url="http://127.0.0.1:9000/v1", concurrency=3, max_failed=0.5, licence="x")
    assert one.identity == same.identity and name_of(one) == "m at http://127.0.0.1/v1"
    others = [{"model": "n"}, {"base_url": "http://x/v1"}, {"system": "s"}, {"extra_body": {"top_k": 1}}]
    for change in [*others, {"endpoint": "completions"}]:
        assert OpenAITeacher(**{**one.model_dump(), **change}).identity != one.identity


def test_a_map_of_any_keys_in_a_recipe():
    found = recipe("teacher.extra_body={seed: null, provider: {order: [a, b]}, top_k: 3}").teacher
    assert isinstance(found, OpenAITeacher)
    assert json.dumps(found.extra_body) == '{"seed": null, "provider": {"order": ["a", "b"]}, "top_k": 3}'
    with pytest.raises(RecipeError, match="a map of any keys"):
        recipe("teacher.extra_body=3")
