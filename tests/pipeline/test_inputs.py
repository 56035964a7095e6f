"""Models and files that are replaced under their names: noticed, named, and all that depends on them is made anew."""

import json
import os
import shutil

import pytest

from limbeck.pipeline.inputs import changed
from limbeck.pipeline.run import run_recipe
from limbeck.system.rundir import RunDir
from tests import tiny
from tests.pipeline.test_run import recipe_of
from tests.pipeline.visits import state_of

RULE = {"kind": "verify", "verifier": {"kind": "regex", "pattern": "(?s).*"}}


def replace(folder, model):
    """Train a model further, as it were: other weights under the same names."""
    shutil.copy(model / "model.safetensors", folder / "model.safetensors")


@pytest.fixture
def place(tiny_folder, tmp_path, monkeypatch):
    """A folder to work in, with a teacher, a student to start from, and rows."""
    shutil.copytree(tiny_folder("llama"), tmp_path / "teacher")
    shutil.copytree(tiny_folder("llama", seed=1), tmp_path / "start")
    tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.rows(16))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe_in(place, **changes):
    return recipe_of("teacher", "rows.jsonl", train__budget={"kind": "steps", "steps": 2}, **changes)


def run(recipe, folder, until="evaluate"):
    messages: list[str] = []
    run_recipe(recipe, folder, until=until, estimate=False, on_message=messages.append)
    return messages


def done_again(messages):
    return [message.split(":")[0] for message in messages if "changed since" in message]


def skipped(messages):
    return [message.split(":")[0] for message in messages if "skipped" in message]


@pytest.mark.slow
def test_a_teacher_that_is_replaced_is_another_teacher(place, tiny_folder):
    """And when the first one is put back, what it made is taken up again."""
    recipe = recipe_in(place)
    run(recipe, place / "run")
    first = state_of(place / "run")
    assert skipped(run(recipe, place / "run")) == ["data", "label", "student", "train", "evaluate"]
    replace(place / "teacher", tiny_folder("llama", seed=4))
    messages = run(recipe, place / "run")
    assert done_again(messages) == ["label", "student", "train", "evaluate"]
    assert any("teacher/model.safetensors changed since" in message for message in messages)
    run(recipe, place / "fresh")
    second = state_of(place / "fresh")
    assert state_of(place / "run") == second != first
    replace(place / "teacher", tiny_folder("llama"))
    messages = run(recipe, place / "run")
    assert state_of(place / "run") == first
    assert sum("taken up again" in message for message in messages) == 3


@pytest.mark.slow
def test_a_teacher_replaced_between_labels_and_student(place, tiny_folder):
    recipe = recipe_in(place)
    run(recipe, place / "run", until="label")
    replace(place / "teacher", tiny_folder("llama", seed=4))
    run(recipe, place / "run")
    run(recipe, place / "fresh")
    assert state_of(place / "run") == state_of(place / "fresh")


@pytest.mark.slow
def test_a_student_to_start_from_that_is_replaced_is_trained_anew(place, tiny_folder):
    recipe = recipe_in(place, student={"kind": "pretrained", "path": "start"})
    run(recipe, place / "run")
    replace(place / "start", tiny_folder("llama", seed=5))
    messages = run(recipe, place / "run")
    assert skipped(messages) == ["data", "label"] and done_again(messages) == ["student", "train", "evaluate"]
    run(recipe, place / "fresh")
    assert state_of(place / "run") == state_of(place / "fresh")


@pytest.mark.slow
def test_a_file_that_is_only_touched_changes_nothing(place):
    recipe = recipe_in(place)
    run(recipe, place / "run", until="student")
    for file in (place / "teacher").iterdir():
        os.utime(file)
    (place / "teacher" / "README.md").write_text("of another day")
    assert skipped(run(recipe, place / "run", until="student")) == ["data", "label", "student"]


@pytest.mark.slow
def test_records_of_earlier_versions_are_completed(place, tiny_folder):
    """They say nothing of contents: what is there then is what they were made of."""
    recipe = recipe_in(place)
    run(recipe, place / "run", until="student")
    for file in (place / "run" / "stages").iterdir():
        facts = json.loads(file.read_text())
        file.write_text(json.dumps({name: facts[name] for name in facts if name not in ("inputs", "identity", "crc")}))
    assert RunDir(place / "run").record("label").inputs is None
    assert skipped(run(recipe, place / "run", until="student")) == ["data", "label", "student"]
    assert "teacher/model.safetensors" in RunDir(place / "run").record("label").inputs
    replace(place / "teacher", tiny_folder("llama", seed=4))
    assert done_again(run(recipe, place / "run", until="student")) == ["label", "student"]


@pytest.mark.slow
def test_a_schema_that_is_replaced_is_asked_again(place):
    pytest.importorskip("jsonschema")
    rule = {"kind": "verify", "verifier": {"kind": "json_schema", "path": "schema.json"}, "keep_wrong": True}
    recipe = recipe_in(place, curate=[rule])
    rates = []
    for kind in ("object", "string"):
        (place / "schema.json").write_text(json.dumps({"type": kind, "not": {}} if kind == "object" else {}))
        messages = run(recipe, place / "run", until="curate")
        rates.append(json.loads((place / "run" / "curate" / "summary.json").read_text())["pass_rate"])
    assert done_again(messages) == ["curate"] and "schema.json changed since" in " ".join(messages)
    assert skipped(messages) == ["data", "label"] and rates[0] == 0.0


def test_what_changed_is_named():
    assert changed({"a": "1", "b": "2"}, {"a": "1", "b": "2"}) == ""
    assert changed({"a": "1", "b": "2"}, {"a": "3", "c": "4"}) == "a, b, c"
    assert changed({}, {str(n): "" for n in range(9)}) == "0, 1, 2 and 6 more"
