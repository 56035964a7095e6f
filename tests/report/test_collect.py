"""Reading a run folder: complete, partial, damaged, or none."""

import json

import pytest

from limbeck.errors import RunDirError
from limbeck.report.collect import collect, dig
from tests.report.fake import make_run, write


def test_a_whole_run(tmp_path):
    files = collect(make_run(tmp_path, steps=20))
    assert files.gaps == []
    assert files.get("student", "kl") == 0.412 and files.detail("rows") == 240
    assert files.recipe["student"] == {"kind": "prune", "layers": 20}
    steps, values = files.curves["student"].points("kl")
    assert len(steps) == len(values) == 20 and steps[0] == 1
    assert files.curves["twin"].points("kl") == ([], [])
    assert len(files.curves["twin"].points("ce")[0]) == 20


def test_no_run_folder(tmp_path):
    with pytest.raises(RunDirError, match="not a run folder"):
        collect(tmp_path)


def test_only_a_recipe(tmp_path):
    write(tmp_path / "recipe.yaml", "name: x\n")
    files = collect(tmp_path)
    assert files.summary == {} and files.answers == [] and files.curves == {} and files.gaps == []


def test_damage_is_named(tmp_path):
    make_run(tmp_path, steps=5)
    write(tmp_path / "evaluate" / "details.json", '{"cut": ')
    write(tmp_path / "evaluate" / "answers.json", '{"not": "a list"}')
    write(tmp_path / "recipe.yaml", "a: [")
    metrics = tmp_path / "train" / "student" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '[]\n{"step": NaN}\n{"step": 6, "lo')
    files = collect(tmp_path)
    assert files.details == {} and files.answers == []
    assert len(files.curves["student"].steps) == 5
    assert sorted(files.gaps) == [
        "2 of 7 lines of student/metrics.jsonl could not be read.",
        "answers.json is damaged; what it held is not shown.",
        "details.json is damaged; what it held is not shown.",
        "recipe.yaml is not readable YAML.",
    ]


def test_missing_and_infinite_metrics(tmp_path):
    write(tmp_path / "recipe.yaml", "name: x\n")
    lines = [{"step": 1, "loss": 2.0, "kl": None}, {"step": 2, "loss": float("inf")}, {"step": 3, "loss": "high"}]
    write(tmp_path / "train" / "student" / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    curve = collect(tmp_path).curves["student"]
    assert curve.points("loss") == ([1.0], [2.0]) and curve.points("kl") == ([], [])


def test_dig():
    assert dig({"a": {"b": 1}}, "a", "b") == 1
    assert dig({"a": [1]}, "a", "b") is None and dig(None, "a") is None and dig({}, "a") is None
