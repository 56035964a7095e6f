"""Contradictions and settings without effect are problems; sound recipes have none."""

import pytest

from limbeck.config.problems import Problem, changed, problem
from limbeck.errors import RecipeError
from limbeck.recipe import Recipe
from limbeck.recipe.rules.check import check_static, raise_problems, warn_static
from tests.recipes import tiny_recipe

FILES = "data.source={kind: files, path: x.jsonl}"
PRUNE = "student={kind: prune, layers: 2}"
GENERATE = "trace.mode={kind: generate, temperature: 0}"
FULL, TOP_K = "trace.target.kind=full", "trace.target.kind=top_k"
LINEAR = "objective.temperature={kind: linear, start: 4, end: 1}"
REST = "trace.target={kind: top_k, tail: spread}"
ADAPTIVE = "objective.temperature={kind: adaptive, certain: 2, unsure: 1}"
WEIGHTS = "objective.position_weights"
TEACHER = f"{WEIGHTS}.teacher={{certain: 0.5, unsure: 1"


def also(terms: str) -> str:
    return f"objective.extra_terms=[{terms}]"


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
        (["objective.divergence.kind=mse", TOP_K], "objective.divergence", "logits of every token"),
        ([also("{divergence: {kind: tvd}}")], "objective.extra_terms[0].divergence", "a stored sampled target"),
        ([FULL, "objective.divergence={kind: skew_forward, alpha: 1}"], "objective.divergence.alpha", "always 0"),
        ([FULL, "objective.divergence={kind: alpha_beta, alpha: 0, beta: 0}"], "objective.divergence", "at least one"),
        ([TOP_K, "objective.divergence={kind: ranking, k: 40}"], "objective.divergence.k", "keeps 32 tokens"),
        ([FULL, "objective.divergence.kind=cosine", "objective.temperature=2"], "objective.temperature", "no effect"),
        ([LINEAR], "objective.temperature", "cannot be re-tempered"),
        ([ADAPTIVE], "objective.temperature", "cannot be re-tempered"),
        ([FULL, "objective.temperature={kind: linear, start: 2, end: 2}"], "objective.temperature", "does not change"),
        ([FULL, "objective.temperature={kind: cosine, start: 2, end: 0}"], "objective.temperature", "reaches 0"),
        ([FULL, f"{ADAPTIVE[:-1]}, by: confidence, unsure_from: 2}}"], "objective.temperature.unsure_from", "at most"),
        (
            [FULL, also("{divergence: {kind: mse}, temperature: 2}")],
            "objective.extra_terms[0].temperature",
            "no effect on mse",
        ),
        (
            [also("{divergence: {kind: forward_kl}, temperature: 2}")],
            "objective.extra_terms[0].temperature",
            "one temperature",
        ),
        (["objective.ce_weight={kind: linear, start: 0.5, end: 0.5}"], "objective.ce_weight", "does not change"),
        (["objective.ce_weight={kind: linear, start: 0.5, end: 1.5}"], "objective.ce_weight", "at most 1"),
        (["objective.label_smoothing=0.1"], "objective.label_smoothing", "without cross-entropy"),
        (["objective.ce_weight=1", also("{divergence: {kind: tvd}}")], "objective.extra_terms", "ce_weight is 1"),
        ([TOP_K, f"{TEACHER}, by: entropy}}"], f"{WEIGHTS}.teacher.by", "Use confidence"),
        (["trace.target.draws=8", f"{TEACHER}, by: confidence}}"], f"{WEIGHTS}.teacher.by", "Use entropy"),
        (["trace.target.value=probability", f"{TEACHER}, by: entropy}}"], f"{WEIGHTS}.teacher.by", "Use confidence"),
        ([REST, "objective.divergence.kind=reverse_kl"], "objective.divergence", "only some"),
        ([f"{WEIGHTS}.teacher={{certain: 2, unsure: 2}}"], f"{WEIGHTS}.teacher", "one weight"),
        ([f"{WEIGHTS}.tokens={{}}"], f"{WEIGHTS}.tokens", "one weight"),
        ([f"{WEIGHTS}.place={{kind: first, tokens: 3, weight: 1}}"], f"{WEIGHTS}.place", "which all have"),
        ([f"{WEIGHTS}.place={{kind: ramp, tokens: 3, start: 2, end: 2}}"], f"{WEIGHTS}.place", "does not change"),
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
        [TOP_K, "objective.divergence.kind=jsd"],
        [FULL, LINEAR, also("{divergence: {kind: mse}}, {divergence: {kind: tvd}, temperature: 3}")],
        [FULL, ADAPTIVE, "objective.divergence.kind=decoupled"],
        [FULL, "objective.divergence.kind=mse", "objective.temperature=2", also("{divergence: {kind: tvd}}")],
        ["objective.temperature=2", also("{divergence: {kind: forward_kl}, weight: 0.5}")],
        ["objective.ce_weight={kind: linear, start: 0.0, end: 1}", "objective.label_smoothing=0.1", "train.twin=true"],
        ["objective.ce_weight=1", f"{TEACHER}}}", "trace.target.kind=sampled", "train.twin=true"],
        [f"{TEACHER}}}", f"{WEIGHTS}.tokens.digits=2", f"{WEIGHTS}.place={{kind: first, tokens: 3, weight: 2}}"],
        [TOP_K, f"{TEACHER}, by: confidence}}"],
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


@pytest.mark.parametrize(
    ("overrides", "where", "message"),
    [
        ([TOP_K, "objective.divergence.kind=reverse_kl"], "objective.divergence", "a lower bound"),
        ([TOP_K, also("{divergence: {kind: tvd}}")], "objective.extra_terms[0].divergence", "tvd on a stored top_k"),
        ([TOP_K, "trace.target.k=12"], "trace.target.k", "sampled is unbiased"),
        ([REST], "trace.target.tail", "is spread: targets are biased"),
        (["trace.target.value=probability"], "trace.target.value", "counts is unbiased"),
    ],
)
def test_warnings(recipe: Recipe, overrides, where, message):
    changed = recipe.override(*overrides)
    assert check_static(changed) == []
    assert [found.where for found in warn_static(changed)] == [where]
    assert message in warn_static(changed)[0].message


@pytest.mark.parametrize("overrides", [[], [TOP_K], [FULL, "objective.divergence.kind=reverse_kl"]])
def test_no_warnings(recipe: Recipe, overrides):
    assert warn_static(recipe.override(*overrides)) == []


def test_raise_problems():
    raise_problems([])
    problems = [problem("a.b", "is wrong."), Problem("c", "too.")]
    with pytest.raises(RecipeError) as caught:
        raise_problems(problems, lambda where: f"r.yaml:{len(where)}")
    assert str(caught.value) == "r.yaml:3: a.b is wrong.\nr.yaml:1: too."


def test_changed(recipe: Recipe):
    default = recipe.trace.shard_tokens
    trace = recipe.override("trace.batch_tokens=9", f"trace.shard_tokens={default}").trace
    assert changed(trace, "batch_tokens", "shard_tokens", "mode", "target") == ["batch_tokens"]
