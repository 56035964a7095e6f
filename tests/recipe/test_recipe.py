"""Loading and dumping are inverse; fingerprints name what changed."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.config.load import validate
from limbeck.config.yaml import parse_yaml
from limbeck.recipe import Recipe
from limbeck.recipe.recipe import dump_recipe
from limbeck.recipe.rules.check import check_static
from tests.recipes import tiny_recipe

WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
UNIT = st.floats(0, 1)
STUDENTS = st.one_of(
    st.fixed_dictionaries({"kind": st.just("pretrained"), "path": WORDS}),
    st.fixed_dictionaries({"kind": st.just("prune"), "keep": st.lists(st.integers(0, 99), max_size=4)}),
    st.fixed_dictionaries({"kind": st.just("scratch"), "parameters": st.none() | WORDS}),
)
RECIPES = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[a-z0-9][a-z0-9._-]{0,8}", fullmatch=True),
        "scope": WORDS,
        "teacher": st.fixed_dictionaries({"path": WORDS, "licence": st.none() | WORDS}),
        "data": st.fixed_dictionaries(
            {"source": st.fixed_dictionaries({"kind": st.just("files"), "path": WORDS, "text": st.none() | WORDS})}
        ),
        "trace": st.fixed_dictionaries(
            {
                "mode": st.fixed_dictionaries(
                    {"kind": st.just("generate"), "top_p": st.floats(0.01, 1), "stop": st.lists(WORDS)}
                )
            }
        ),
        "student": STUDENTS,
        "objective": st.fixed_dictionaries({"ce_weight": UNIT, "temperature": st.floats(1e-9, 1e9)}),
        "train": st.fixed_dictionaries(
            {"budget": st.just({"kind": "steps", "steps": 1}), "clip": st.none() | st.floats(1e-9, 9)}
        ),
    }
)


@settings(max_examples=60)
@given(RECIPES)
def test_dump_and_load_are_inverse(values):
    recipe = Recipe.model_validate(values)
    assert validate(Recipe, parse_yaml(dump_recipe(recipe), "x")) == recipe


def test_a_dumped_recipe_is_as_sound_as_the_original(tmp_path):
    live = tiny_recipe("trace.target.kind=full")
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_recipe(live))
    assert Recipe.load(path) == live
    assert check_static(Recipe.load(path)) == [], "defaults that are written out are not settings without effect"


def test_fingerprints():
    recipe = tiny_recipe()
    assert recipe.fingerprint() == Recipe.model_validate(json.loads(recipe.model_dump_json())).fingerprint()
    longer = recipe.override("train.budget.tokens=9")
    assert longer.fingerprint() != recipe.fingerprint()
    assert longer.fingerprint("data", "trace") == recipe.fingerprint("trace", "data")
    assert longer.fingerprint("train.optimizer") == recipe.fingerprint("train.optimizer")
    assert longer.fingerprint("train") != recipe.fingerprint("train")
    assert len(recipe.fingerprint()) == 16
