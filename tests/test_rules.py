"""Contradictions and settings without effect are problems; sound recipes have none."""

import pytest

from limbeck.errors import RecipeError
from limbeck.recipe import Recipe
from limbeck.rules import Problem, changed, check_static, needs, problem, raise_problems
from limbeck.types import Cap
from tests.recipes import tiny_recipe

FILES = "data.source={kind: files, path: x.jsonl}"
PRUNE = "student={kind: prune, layers: 2}"
GENERATE = "trace.mode={kind: generate, temperature: 0}"
FULL = "trace.target.kind=full"


@pytest.fixture
def recipe() -> Recipe:
    return tiny_recipe()


@pytest.mark.parametrize(
    ("overrides", "where", "message"),
    [
        (["data.source={kind: files, path: x, text: a, messages: b}"], "data.source", "text and messages"),
        (["data.source={kind: datasets, path: x, prompt: a, text: b}"], "data.source", "text and prompt"),
        (["data.source={kind: files, path: x, completion: a}"], "data.source.completion", "needs `prompt`"),
        (["data.source={kind: files, path: x, prompt: a}"], "data.source.prompt", "trace.mode.kind=generate"),
        (["data.chat_template=false"], "data.chat_template", "no effect on plain text"),
        (["data.source={kind: files, path: x, messages: m}", "data.chat_template=false"], "data.chat_template", "chat"),
        (
            ["data.source={kind: files, path: x, text: t}", "data.chat_template=false"],
            "data.chat_template",
            "plain text",
        ),
        ([GENERATE, "trace.mode.top_p=0.5"], "trace.mode.top_p", "no effect at temperature 0"),
        ([GENERATE, "trace.mode.n=2"], "trace.mode.n", "all the same"),
        ([GENERATE, "trace.mode.stop=['']"], "trace.mode.stop", "empty string"),
        ([FULL, "trace.shard_tokens=5"], "trace.shard_tokens", "nothing is stored"),
        ([FULL, "trace.batch_tokens=5"], "trace.batch_tokens", "nothing is stored"),
        (["student={kind: prune}"], "student", "neither `layers` nor `keep`"),
        (["student={kind: prune, layers: 2, keep: [1]}"], "student", "both"),
        (["student={kind: prune, keep: []}"], "student.keep", "ascending"),
        (["student={kind: prune, keep: [2, 1]}"], "student.keep", "is [2, 1]"),
        (["student={kind: prune, keep: [1, 1]}"], "student.keep", "each once"),
        (["student={kind: prune, keep: [-1, 1]}"], "student.keep", "from 0"),
        (["student={kind: prune, keep: [1], probe_rows: 3}"], "student.probe_rows", "nothing is measured"),
        (["student={kind: scratch}"], "student", "no size"),
        (["student={kind: scratch, layers: 2}"], "student", "layers but not hidden_size, heads"),
        (["student={kind: scratch, layers: 2, parameters: 1M}"], "student", "not both"),
        (["student={kind: scratch, parameters: huge}"], "student.parameters", "17M"),
        (["student={kind: scratch, hidden_size: 10, heads: 3, layers: 1}"], "student.hidden_size", "multiple"),
        (["objective.divergence.kind=reverse_kl"], "objective.divergence", "trace.target.kind=full"),
        (["objective.divergence.kind=jsd"], "objective.divergence", "a stored sampled target has only some"),
        (["objective.divergence.kind=jsd", "trace.target.kind=top_k"], "objective.divergence", "stored top_k"),
        (["objective.divergence.kind=reverse_kl", "trace.target.kind=sampled"], "objective.divergence", "sampled"),
        (["objective.ce_weight=1", "objective.temperature=2"], "objective.temperature", "ce_weight is 1"),
        (["objective.ce_weight=1", "objective.divergence.kind=jsd"], "objective.divergence", "ce_weight is 1"),
        (["objective.ce_weight=1", "trace.target.kind=top_k"], "trace.target", "no distribution is used"),
        (["objective.ce_weight=1", "train.twin=true"], "train.twin", "hard-label twin already"),
        (["train.optimizer.betas=[0.9, 1]"], "train.optimizer.betas", "below 1"),
        (["train.optimizer.betas=[-0.1, 0.5]"], "train.optimizer.betas", "at least 0"),
        (["train.schedule={kind: wsd, warmup: 0.6, decay: 0.6}"], "train.schedule", "at most 1"),
        (["evaluate.answers=0", "evaluate.answer_tokens=3"], "evaluate.answer_tokens", "no effect"),
    ],
)
def test_one_problem(recipe: Recipe, overrides, where, message):
    problems = check_static(recipe.override(*overrides))
    assert [problem.where for problem in problems] == [where]
    assert message in problems[0].message


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [FILES],
        ["data.source={kind: files, path: x, topic: t}", "data.chat_template=false"],
        ["data.source={kind: files, path: x, prompt: a, completion: b}", "data.chat_template=false"],
        ["data.source={kind: files, path: x, prompt: a}", GENERATE],
        [FULL, "objective.divergence.kind=reverse_kl"],
        [FULL, "objective.divergence.kind=jsd"],
        ["objective.divergence={kind: jsd, beta: 0}"],
        ["objective.ce_weight=1"],
        ["objective.ce_weight=0.5", "train.twin=true"],
        ["student={kind: prune, keep: [0, 3]}"],
        ["student={kind: scratch, hidden_size: 12, heads: 3, layers: 1}"],
        ["student={kind: scratch, parameters: 1.5B}"],
        ["train.schedule={kind: wsd, warmup: 0.5, decay: 0.5}"],
        ["train.optimizer.betas=[0, 0.999]"],
    ],
)
def test_sound(recipe: Recipe, overrides):
    assert check_static(recipe.override(*overrides)) == []


def test_raise_problems():
    raise_problems([])
    problems = [problem("a.b", "is wrong."), Problem("c", "too.")]
    with pytest.raises(RecipeError) as caught:
        raise_problems(problems, lambda where: f"r.yaml:{len(where)}")
    assert str(caught.value) == "r.yaml:3: a.b is wrong.\nr.yaml:1: too."


def test_needs(recipe: Recipe):
    assert Cap.GENERATE in needs(recipe)
    assert Cap.GENERATE not in needs(recipe.override("evaluate.answers=0"))
    assert needs(recipe.override(GENERATE))[Cap.GENERATE] == "trace.mode generate"
    assert {Cap.FULL_LOGITS, Cap.HIDDEN_STATES} <= set(needs(recipe))


def test_changed(recipe: Recipe):
    default = recipe.trace.shard_tokens
    trace = recipe.override("trace.batch_tokens=9", f"trace.shard_tokens={default}").trace
    assert changed(trace, "batch_tokens", "shard_tokens", "mode", "target") == ["batch_tokens"]
