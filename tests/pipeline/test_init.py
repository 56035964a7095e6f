"""`limbeck init` writes recipes that load, for every case, commented with the fields' own descriptions."""

import json
import re

import pytest

from limbeck.config.load import validate
from limbeck.config.schema import paths_of
from limbeck.config.yaml import parse_yaml
from limbeck.errors import RecipeError
from limbeck.pipeline.init import InitChoice, recipe_text
from limbeck.recipe import (
    DatasetSource,
    FileSource,
    GenerateMode,
    PretrainedStudent,
    PruneStudent,
    Recipe,
    ScratchStudent,
)
from limbeck.recipe.rules.check import check_static


def load(text: str) -> Recipe:
    return validate(Recipe, parse_yaml(text, "init.yaml"))


@pytest.mark.parametrize(
    ("choice", "student"),
    [
        (InitChoice(), PruneStudent(layers=20)),
        (InitChoice(layers=7, data="chats.jsonl", mode="generate"), PruneStudent(layers=7)),
        (InitChoice(teacher="some/hub-id", student="other/model: odd # name", data="*.csv"), None),
        (InitChoice(teacher="x.gguf", parameters="17M", data="org/name"), ScratchStudent(parameters="17M")),
    ],
)
def test_every_case_loads_and_is_sound(choice, student):
    recipe = load(recipe_text(choice))
    assert check_static(recipe) == []
    assert recipe.student == (student or PretrainedStudent(path="other/model: odd # name"))
    assert recipe.teacher.path == choice.teacher
    assert isinstance(recipe.trace.mode, GenerateMode) == (choice.mode == "generate")
    assert recipe.train.twin


def test_sources(tmp_path):
    assert load(recipe_text(InitChoice())).data.source.kind == "stdlib"
    assert load(recipe_text(InitChoice(data="a.jsonl"))).data.source == FileSource(path="a.jsonl")
    assert load(recipe_text(InitChoice(data=str(tmp_path)))).data.source == FileSource(path=str(tmp_path))
    assert load(recipe_text(InitChoice(data="gsm8k"))).data.source == DatasetSource(path="gsm8k")
    assert load(recipe_text(InitChoice(data="datasets:a.csv"))).data.source == DatasetSource(path="a.csv")


def test_comments_show_the_defaults():
    """Uncommenting every default changes nothing: the comments are true."""
    text = recipe_text(InitChoice(layers=3))
    keys = "|".join({path.rpartition(".")[2] for path in paths_of(Recipe)})
    uncommented, count = re.subn(rf"^( *)# ((?:{keys}): )", r"\1\2", text, flags=re.MULTILINE)
    assert count > 20
    assert load(uncommented) == load(text)
    assert "length of a row in tokens" in text
    assert "Other kinds: pretrained, scratch." in text.replace("\n# ", " ")
    assert max(map(len, text.splitlines())) <= 120


def test_layers_of_a_local_teacher(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 12}))
    assert load(recipe_text(InitChoice(teacher=str(tmp_path)))).student == PruneStudent(layers=8)


def test_a_student_that_cannot_be_guessed(tmp_path):
    for teacher in ("some/hub-id", str(tmp_path)):
        with pytest.raises(RecipeError, match="--layers N .*--parameters 17M .*--student PATH"):
            recipe_text(InitChoice(teacher=teacher))
    with pytest.raises(RecipeError, match="--student and --layers name two students"):
        recipe_text(InitChoice(student="x", layers=3))


@pytest.mark.parametrize(
    ("student", "rate"),
    [
        ("Qwen/Qwen2.5-Math-1.5B", 1e-4),
        ("Qwen/Qwen2.5-Math-7B", 8e-5),
        ("meta-llama/Llama-3.1-8B", 5e-5),
        ("Qwen/Qwen2.5-14B", 7e-5),
        ("Qwen/Qwen2.5-32B", 6e-5),
        ("meta-llama/Llama-3.3-70B-Instruct", 2e-5),
        ("HuggingFaceTB/SmolLM2-360M", 1e-4),
    ],
)
def test_r1_rates_by_size(student, rate):
    recipe = validate(
        Recipe, parse_yaml(recipe_text(InitChoice(student=student, data="traces.jsonl", preset="r1")), "r1")
    )
    assert recipe.train.optimizer.lr == rate and not check_static(recipe)
    assert recipe.teacher.kind == "text" and [rule.kind for rule in recipe.curate][:2] == ["finish", "think"]


def test_r1_needs_a_student_of_known_size(tiny_llama):
    for student in (None, "some/model"):
        with pytest.raises(RecipeError, match=r"--preset"):
            recipe_text(InitChoice(student=student, preset="r1"))
    assert "0.0001" in recipe_text(InitChoice(student=str(tiny_llama), preset="r1"))
