"""A key or word that was renamed is refused with the new name, wherever it is written."""

from __future__ import annotations

import pytest

from limbeck.errors import RecipeError
from limbeck.recipe import Recipe
from tests.recipes import TEXT

OPENAI = "teacher={kind: openai, model: m"
GENERATE = "trace.mode={kind: generate"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.also=[]", "'also' is not a key of objective. `also` is called `extra_terms` now."),
        ("objective={also: []}", "'also' is not a key of objective. `also` is called `extra_terms` now."),
        (f"{GENERATE}, enough: {{right: 2}}}}", "`enough` is called `rejection` now."),
        ("trace.mode.kind=generate trace.mode.enough.right=2", "`enough` is called `rejection` now."),
        (f"{GENERATE}, rejection: {{verifier: {{kind: math}}, right: 2}}}}", "`right` is called `num_correct` now."),
        (f"{GENERATE}, rejection: {{verifier: {{kind: math, seconds: 2}}}}}}", "is called `timeout_seconds` now."),
        ("trace.target={kind: top_k, rest: gold}", "`rest` is called `tail` now."),
        ("trace.target.rest=gold", "`rest` is called `tail` now."),  # of another kind than the default
        ("trace.target={kind: top_k, tail: tail}", "trace.target.tail is 'tail'; it must be one of cell, gold, spread"),
        ("trace.target={kind: top_k, tail: tail}", "`tail` is called `cell` now."),
        (f"{OPENAI}, on_change: mark}}", "teacher.on_change is 'mark'; it must be one of stop, annotate. `mark` is"),
        ("curate=[{kind: verify, verifier: {kind: exact, fold: true}}]", "`fold` is called `normalize` now."),
        ("objective.temperature={kind: adaptive, certain: 1, unsure: 2, full: 3}", "`full` is called `unsure_from`"),
    ],
)
def test_an_old_name_is_refused_with_the_new_one(tmp_path, override: str, message: str):
    (tmp_path / "r.yaml").write_text(TEXT)
    split = override.split(" ") if override.startswith("trace.mode.kind") else [override]
    with pytest.raises(RecipeError) as caught:
        Recipe.load(tmp_path / "r.yaml", split)
    assert message in str(caught.value) and "override" in str(caught.value)


def test_an_old_name_is_refused_with_its_line(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(TEXT + "objective:\n  also: []\n")
    line = 2 + TEXT.count("\n")
    expected = f"{file}:{line}: 'also' is not a key of objective. `also` is called `extra_terms` now."
    with pytest.raises(RecipeError) as caught:
        Recipe.load(file)
    assert str(caught.value) == expected
