"""What a teacher behind an endpoint can tell at best, and what recipes may not ask of it."""

import pytest

from limbeck.errors import RecipeError
from limbeck.recipe import OpenAITeacher, Recipe, VllmTeacher
from limbeck.recipe.rules.check import check_static
from tests.recipes import tiny_recipe

STUDENT = "student={kind: pretrained, path: somewhere}"
GENERATE = "trace.mode.kind=generate"
TOP_K, VOTES = "trace.target={kind: top_k, k: 20}", "trace.target.kind=votes"


def at(kind: str, *overrides: str) -> Recipe:
    return tiny_recipe(f"teacher.kind={kind}", "teacher.model=m", STUDENT, *overrides)


@pytest.mark.parametrize("kind", ["openai", "vllm"])
@pytest.mark.parametrize(
    ("overrides", "where", "message"),
    [
        ([GENERATE], "trace.target.kind", "never tells a whole distribution"),
        ([GENERATE, "trace.target.kind=full"], "trace.target.kind", "top_k"),
        ([TOP_K, GENERATE, "objective.temperature=2"], "objective.temperature", "Set it to 1"),
        (["trace.target.kind=text", "objective.ce_weight=1"], "trace.mode.kind", "made of replies"),
        ([VOTES], "trace.mode.kind", "made of replies"),
        ([TOP_K, "teacher.samples_per_request=2"], "teacher.samples_per_request", "nothing is written"),
    ],
)
def test_contradictions(kind, overrides, where, message):
    found = {problem.where: problem.message for problem in check_static(at(kind, *overrides))}
    assert message in found[where]


@pytest.mark.parametrize("kind", ["openai", "vllm"])
@pytest.mark.parametrize("overrides", [[TOP_K], [TOP_K, GENERATE], [VOTES, GENERATE, "trace.mode.n=5"]])
def test_sound_recipes(kind, overrides):
    assert check_static(at(kind, *overrides)) == []


def test_vllm_is_an_endpoint_without_a_key():
    teacher = at("vllm", TOP_K).teacher
    assert isinstance(teacher, VllmTeacher) and isinstance(teacher, OpenAITeacher) and not teacher.is_local
    assert teacher.api_key_env is None and teacher.identity[0] == "vllm"


def test_gguf_is_a_teacher_in_this_process():
    recipe = tiny_recipe("teacher={kind: gguf, path: some.gguf, dtype: float32}")
    assert recipe.teacher.is_local and check_static(recipe) == []
    (found,) = check_static(recipe.override("teacher.trust_remote_code=true"))
    assert found.where == "teacher.trust_remote_code"
    with pytest.raises(RecipeError, match="gguf"):
        tiny_recipe("teacher={kind: gguf, path: some/folder}")


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        (["teacher.batch_requests=5"], "teacher.batch_requests"),
        (["teacher.mode=batch", "teacher.concurrency=3"], "teacher.concurrency"),
        (["teacher.mode=batch", "trace.mode.kind=score"], "teacher.mode"),
    ],
)
def test_settings_of_batches(overrides, where):
    found = check_static(at("openai", TOP_K, GENERATE, *overrides))
    assert [problem.where for problem in found] == [where]
