"""What rules will need is told before any reply is paid for."""

import json

import pytest

from limbeck.check import curate
from limbeck.check.curate import curate_problems
from limbeck.text.encode import Example
from tests.recipes import tiny_recipe

ROWS = [Example(prompt="p", topic="maths", reference="1", source="a:1"), Example(prompt="q", source="a:2")]


def told(*rules, rows=ROWS) -> str:
    recipe = tiny_recipe(f"curate={json.dumps(rules)}")
    return "\n".join(f"{found.where}: {found.message}" for found in curate_problems(recipe, rows))


def verify(kind="exact", **settings):
    topics = settings.pop("topics", [])
    return {"kind": "verify", "verifier": {"kind": kind, **settings}, "topics": topics}


def test_packages(monkeypatch):
    rules = [{"kind": "near_duplicates"}, {"kind": "language", "allowed": ["en"]}, verify("math", topics=["maths"])]
    assert told(*rules) == ""
    monkeypatch.setattr(curate, "find_spec", lambda name: None)
    lines = told(*rules).splitlines()
    assert [line.split()[0] for line in lines] == ["curate[0]:", "curate[1]:", "curate[2].verifier:"]
    assert "pip install 'limbeck[curate]'" in lines[0] and "pip install 'limbeck[verify]'" in lines[2]


def test_files(tmp_path):
    file = tmp_path / "there.csv"
    file.write_text("id,verdict\n")
    there = {"kind": "verdicts", "path": str(file)}
    assert told(there, {"kind": "decontaminate", "paths": [str(file)]}) == ""
    gone = [there | {"path": "nowhere.csv"}, {"kind": "decontaminate", "paths": [str(file), "gone.txt"]}]
    assert [line.split("names the file ")[1].split(",")[0] for line in told(*gone).splitlines()] == [
        "nowhere.csv",
        "gone.txt",
    ]
    assert "schema.json, which is not there" in told(verify("json_schema", path="schema.json"))


@pytest.mark.parametrize(
    ("rule", "lacks"),
    [
        (verify(), True),
        (verify(topics=["maths"]), False),
        (verify("regex"), True),
        (verify("regex", pattern="x"), False),
    ],
)
def test_references(rule, lacks):
    assert ("a:2 has none" in told(rule)) is lacks


def test_the_sandbox(monkeypatch):
    monkeypatch.setattr(curate, "unavailable", lambda isolation: f"no {isolation} here.")
    assert "curate[0].verifier.isolation" in told(verify("unit_tests", topics=["maths"]))
    assert "no bwrap here." in told(verify("unit_tests", topics=["maths"]))
