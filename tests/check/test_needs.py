"""What rules will need is told before any reply is paid for."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest

from limbeck.check import needs
from limbeck.check.needs import curation_needs
from limbeck.check.recipe import check_recipe
from limbeck.errors import TeacherError
from limbeck.text.encode import Example
from tests.export.test_verified import recipe_of
from tests.recipes import tiny_recipe

ROWS = [Example(prompt="p", topic="maths", reference="1", source="a:1"), Example(prompt="q", source="a:2")]


def told(*rules, rows=ROWS) -> str:
    recipe = tiny_recipe(f"curate={json.dumps(rules)}")
    return "\n".join(
        f"{found.where}: {found.message}" for found in curation_needs(recipe, SimpleNamespace(examples=rows))
    )


def verify(kind="exact", **settings):
    topics = settings.pop("topics", [])
    return {"kind": "verify", "verifier": {"kind": kind, **settings}, "topics": topics}


def test_packages(monkeypatch):
    rules = [{"kind": "near_duplicates"}, {"kind": "language", "allowed": ["en"]}, verify("math", topics=["maths"])]
    assert told(*rules) == ""
    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    lines = told(*rules).splitlines()
    assert [line.split()[0] for line in lines] == ["curate[0]:", "curate[1]:", "curate[2].verifier:"]
    assert "pip install 'limbeck[curate]'" in lines[0] and "pip install 'limbeck[verify]'" in lines[2]


def test_files(tmp_path):
    file = tmp_path / "there.csv"
    file.write_text("id,verdict\n")
    there = {"kind": "verdicts", "path": str(file)}
    assert told(there, {"kind": "decontaminate", "paths": [str(file)]}) == ""
    packed = tmp_path / "test.jsonl.gz"
    packed.write_bytes(b"")
    assert "cannot be compared with" in told({"kind": "decontaminate", "paths": [str(packed)]})
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


@pytest.mark.parametrize(
    ("rule", "reference", "why"),
    [
        (verify("numeric"), "one", "no number"),
        (verify("regex"), "(", "not a regular expression"),
        (verify("json_schema"), "{", "not a JSON schema"),
    ],
)
def test_references_that_cannot_be_read_are_told_before_replies_are_paid_for(rule, reference, why):
    rows = [Example(prompt="p", reference="7", source="a:1"), Example(prompt="q", reference=reference, source="a:2")]
    if rule["verifier"]["kind"] == "json_schema":
        pytest.importorskip("jsonschema")
        rows[0] = Example(prompt="p", reference="{}", source="a:1")
    line = told(rule, rows=rows)
    assert "cannot judge replies to a:2" in line and why in line
    assert told(rule, rows=rows[:1]) == ""


def test_a_schema_file_that_is_none(tmp_path):
    pytest.importorskip("jsonschema")
    file = tmp_path / "schema.json"
    file.write_text('{"type": 5}')
    assert "names a file that is no schema" in told(verify("json_schema", path=str(file)))
    file.write_text('{"type": "object"}')
    assert told(verify("json_schema", path=str(file))) == ""


def test_the_sandbox(monkeypatch):
    monkeypatch.setattr(needs, "unavailable", lambda isolation: f"no {isolation} here.")
    assert "curate[0].verifier.isolation" in told(verify("unit_tests", topics=["maths"]))
    assert "no bwrap here." in told(verify("unit_tests", topics=["maths"]))


def problems(recipe):
    return [found for found in check_recipe(recipe, estimate=False).problems if found.where.startswith("export")]


def test_a_package_that_is_missing(tiny_llama, text_jsonl, monkeypatch):
    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    (found,) = problems(recipe_of(tiny_llama, text_jsonl, export=[{"kind": "safetensors", "quant": "int8"}]))
    assert found.where == "export[0]" and "needs the package 'torchao'" in found.message
    assert "pip install 'limbeck[export]'" in found.message
    assert not problems(recipe_of(tiny_llama, text_jsonl, export=[{"kind": "safetensors", "quant": "float16"}]))


@pytest.mark.parametrize(("family", "fits"), [("llama", True), ("gpt2", False)])
def test_a_family_without_layers_to_quantize(tiny_folder, text_jsonl, family, fits):
    recipe = recipe_of(tiny_folder(family), text_jsonl, export=[{"kind": "safetensors", "quant": "int8"}])
    found = problems(recipe)
    assert bool(found) != fits
    assert fits or "'gpt2' has no linear layer that torchao quantizes" in found[0].message


def test_what_a_format_says_of_the_student_is_told(tiny_llama, text_jsonl, monkeypatch):
    def family_of(model):
        raise TeacherError(f"{model.config.model_type} of {model.get_input_embeddings().weight.device} does not fit")

    monkeypatch.setattr(needs, "family_of", family_of)
    (found,) = problems(recipe_of(tiny_llama, text_jsonl, export=[{"kind": "gguf"}]))
    assert found.message == "export[0] does not fit the student: llama of meta does not fit"


def test_a_tokenizer_that_llama_cpp_does_not_know_is_told_before_training(tiny_llama, text_jsonl, tmp_path):
    folder = tmp_path / "lower"
    shutil.copytree(tiny_llama, folder)
    rules = json.loads((folder / "tokenizer.json").read_text()) | {"normalizer": {"type": "Lowercase"}}
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    (found,) = problems(recipe_of(folder, text_jsonl, export=[{"kind": "gguf"}]))
    assert "does not fit the student: this tokenizer cannot be part of a GGUF file" in found.message
