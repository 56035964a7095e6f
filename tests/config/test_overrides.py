"""`a.b.c=value`: parsed, ordered, and refused with a suggestion."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.config.overrides import parse_override
from limbeck.config.yaml import dump_yaml
from limbeck.errors import RecipeError
from limbeck.recipe import Cosine, PruneStudent, Recipe, Sampled, ScratchStudent, StepsBudget, TokensBudget, TopK
from tests.recipes import TEXT, VALUES, tuples


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TEXT)
    return lambda *overrides: Recipe.load(path, overrides)


@given(st.lists(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), min_size=1, max_size=4), VALUES)
def test_round_trip(path, value):
    keys, node = parse_override(f"{'.'.join(path)}={dump_yaml(value, flow=True)}".rstrip("\n"))
    assert keys == tuple(path)
    assert node.plain() == tuples(value)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(RecipeError):
        keys, node = parse_override(text)
        assert all(keys)
        node.plain()


@pytest.mark.parametrize("text", ["steps", "=3", "a..b=3", ".a=3", ""])
def test_not_key_value(text):
    with pytest.raises(RecipeError, match="is not KEY=VALUE"):
        parse_override(text)


def test_values(load):
    recipe = load("seed=3", "train.optimizer.lr=3e-4", "train.clip=null", "scope=code, in short", "train.twin=true")
    assert (recipe.seed, recipe.train.optimizer.lr, recipe.train.clip) == (3, 3e-4, None)
    assert (recipe.scope, recipe.train.twin) == ("code, in short", True)
    assert load("train.optimizer.betas=[0.5, 0.6]").train.optimizer.betas == (0.5, 0.6)
    assert load("train.optimizer={lr: 0.5}").train.optimizer.lr == 0.5


def test_the_last_of_several_counts(load):
    assert load("seed=1", "seed=2").seed == 2


def test_kinds_are_applied_first_and_reset_the_section(load):
    recipe = load("train.budget.steps=10", "train.budget.kind=steps")
    assert recipe.train.budget == StepsBudget(steps=10)
    assert load("student.kind=scratch", "student.parameters=17M").student == ScratchStudent(parameters="17M")
    assert load("student.kind=prune").student == PruneStudent(layers=2), "the same kind resets nothing"
    assert load("train.budget.tokens=7").train.budget == TokensBudget(tokens=7)


def test_an_absent_section_has_its_default_kind(load):
    assert load("trace.target.draws=9").trace.target == Sampled(draws=9)
    assert load("train.schedule.floor=0").train.schedule == Cosine(floor=0)
    assert load("trace.target.k=9", "trace.target.kind=top_k").trace.target == TopK(k=9)
    assert load("trace.target={kind: top_k, k: 9}").trace.target == TopK(k=9)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sead=3", "override sead=3: 'sead' is not a key of a recipe. Did you mean seed?"),
        ("train.budget.steps=10", "belongs to kind steps: set train.budget.kind=steps too"),
        ("train.lr=1", "Did you mean train.optimizer.lr?"),
        ("trace.target.k=4", "'k' is not a key of trace.target of kind sampled. It belongs to kind top_k"),
        ("trace.target.kind=topk", "trace.target.kind is 'topk'; it must be one of top_k, sampled, hybrid, full"),
        ("seed.x=3", "seed is a value and has no 'x' in it; set seed itself"),
        ("objective.extra_terms.weight=3", "objective.extra_terms is a value and has no 'weight'"),
        ("train.optimizer.betas.0=3", "train.optimizer.betas is a value"),
        ("train=5", "override train=5: train is 5; it must be a map with budget"),
        (
            "data.max_length=1",
            "override data.max_length=1: data.max_length is 1; it must be a whole number, at least 2",
        ),
        ("train.optimizer.lr=.inf", "train.optimizer.lr is inf"),
        ("scope=a: b", "scope is a map with a; it must be text"),
        ("scope=[", "not valid YAML"),
        ("teacher.kind=hff", "teacher.kind is 'hff'; it must be one of hf, gguf, text, openai, vllm. Did you mean hf?"),
    ],
)
def test_refusals(load, override, message):
    with pytest.raises(RecipeError) as caught:
        load(override)
    assert message in str(caught.value)


def test_several_belonging_kinds_are_all_named(load):
    with pytest.raises(RecipeError, match="belongs to kind sampled or hybrid: set trace.target.kind=sampled too"):
        load("trace.target.kind=full", "trace.target.draws=3")


def test_a_python_recipe_can_be_overridden(load):
    recipe = load().override("train.budget.kind=steps", "train.budget.steps=4")
    assert recipe.train.budget == StepsBudget(steps=4)
    assert recipe.name == "tiny"
    with pytest.raises(RecipeError, match="sead"):
        recipe.override("sead=1")


def test_a_number_may_become_a_section_and_a_section_begin(load):
    """The tree's own mixed fields: a number or a kind, a section or nothing."""
    linear = load("objective.temperature=3").override("objective.temperature={kind: linear, start: 2, end: 1}")
    assert linear.override("objective.temperature.start=4").objective.temperature.start == 4.0
    assert linear.override("objective.temperature=2").objective.temperature == 2.0
    weighted = linear.override("objective.position_weights.tokens.digits=2")
    assert weighted.objective.position_weights.tokens.digits == 2.0
    assert weighted.override("objective.position_weights.tokens=null").objective.position_weights.tokens is None
