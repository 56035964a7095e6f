"""A recipe is checked by a list: all that is found is told, and another check is another entry."""

import shutil

import pytest

from limbeck.check import opened
from limbeck.check import recipe as check
from limbeck.check.findings import Fact
from limbeck.check.recipe import check_recipe
from limbeck.config.problems import problem
from limbeck.errors import TeacherError
from tests.check.checking import problems


def test_a_sound_recipe(recipe):
    found = check_recipe(recipe, estimate=False)
    assert found.problems == []
    assert "teacher: context of 128 tokens; rows have at most 64." in found.facts
    assert any("text.jsonl" in fact and "supervised" in fact for fact in found.facts)
    assert found.estimate == {}


def test_chats(chats):
    assert problems(chats) == {}


def test_static_problems_are_among_them(recipe):
    assert "student" in problems(recipe.override("student.keep=[0]"))


def test_the_harness_needs_its_package(recipe, monkeypatch):
    asked = recipe.override("evaluate.harness.tasks=[arc_easy]")
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    assert "limbeck[eval]" in problems(asked)["evaluate.harness"]
    assert "evaluate.harness" not in problems(recipe)


def test_trackers_need_their_packages(recipe, monkeypatch):
    asked = recipe.override("train.trackers=[wandb]", "train.tensorboard=true")
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    found = problems(asked)
    assert "limbeck[wandb]" in found["train.trackers"] and "limbeck[tensorboard]" in found["train.tensorboard"]
    assert problems(recipe) == {}


def test_another_check_is_another_entry(recipe, monkeypatch):
    def name_is_long(recipe, opened):
        yield Fact(f"{len(opened.examples)} examples")
        yield problem("name", "is short.")

    monkeypatch.setattr(check, "CHECKS", [*check.CHECKS, name_is_long])
    found = check_recipe(recipe)
    assert [each.where for each in found.problems] == ["name"] and "3 examples" in found.facts
    assert found.estimate == {}, "nothing is measured beside a problem"


@pytest.mark.parametrize("made", [*check.CHECKS, *check.MEASUREMENTS], ids=lambda made: made.__name__)
def test_each_check_is_made(recipe, monkeypatch, made):
    """Each is a function of the recipe and what it opens, and finds no problem in a sound one by itself."""
    monkeypatch.setattr(opened, "estimate_stages", lambda *_: {})
    monkeypatch.setattr(check, "CHECKS", [])
    monkeypatch.setattr(check, "MEASUREMENTS", [made])
    assert recipe.teacher.is_local and check_recipe(recipe).problems == []


def test_what_was_found_before_a_model_is_missing_counts(recipe, tmp_path):
    """And the model that is missing is one problem, however many checks look at it."""
    nowhere = f"student={{kind: pretrained, path: {tmp_path / 'nowhere'}}}"
    found = check_recipe(recipe.override(nowhere, "train.qad={quant: q4_0}", "data.source.text=words"))
    assert [each.where for each in found.problems] == ["student.path", "data.source"]
    assert "teacher: context of 128 tokens; rows have at most 64." in found.facts


def test_a_model_is_opened_once(recipe, monkeypatch):
    asked = []

    def gone(path):
        asked.append(path)
        raise TeacherError("the hub gives no answer")

    monkeypatch.setattr(opened, "resolve_model", gone)
    assert [each.message for each in check_recipe(recipe).problems] == ["the hub gives no answer"]
    assert asked == [recipe.teacher.path]


def test_missing_teacher(recipe, tmp_path):
    found = problems(recipe.override(f"teacher.path={tmp_path / 'nowhere'}"))
    assert "nowhere" in found["teacher.path"]


def test_damaged_config(recipe, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "copy")
    (folder / "config.json").write_text("{")
    assert "teacher.path" in problems(recipe.override(f"teacher.path={folder}"))
