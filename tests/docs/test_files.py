"""docs/reference/files.md lists what a run and a registry really leave on disk, and nothing that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import limbeck
from limbeck.experts import Registry
from limbeck.experts.add import add_expert
from limbeck.experts.transfer_set import PromptChoice

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
ANY = re.compile(r"\b(FILE|KIND|MODEL|N|NAME|QUANT|ROLE|STAGE|VERSION)\b")
"""Words of the page that stand for any part of a name."""
ROW = re.compile(r"^\| `([^`]+)` \| ([^|]+) \|", re.MULTILINE)
RECIPE = """\
name: notes
teacher: {path: TEACHER}
data:
  source: {kind: files, path: TEXT, text: text, topic: topic}
  max_length: 48
student: {kind: prune, layers: 2}
train: {budget: {kind: steps, steps: 2}, batch_tokens: 200, twin: true}
evaluate: {answers: 1, answer_tokens: 2, bootstrap: 20}
export: [{kind: safetensors, quant: bfloat16, max_kl: 1.0}]
"""


def listed(heading: str) -> dict[str, str]:
    """Path to when it is there, of the table under a heading."""
    section = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return {path: when.strip() for path, when in ROW.findall(section)}


def matches(path: str, shown: str) -> bool:
    return re.fullmatch(ANY.sub("[^/]+", shown.replace(".", r"\.")), path) is not None


def compare(folder: Path, shown: dict[str, str]) -> None:
    there = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert [path for path in there if not any(matches(path, one) for one in shown)] == []
    always = [one for one, when in shown.items() if when == "always"]
    assert [one for one in always if not any(matches(path, one) for path in there)] == []


@pytest.mark.slow
def test_files_of_a_run_and_of_a_registry(tmp_path, tiny_llama, text_jsonl):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("TEACHER", str(tiny_llama)).replace("TEXT", str(text_jsonl)))
    run, registry = tmp_path / "run", tmp_path / "registry"
    limbeck.run_recipe(limbeck.Recipe.load(recipe), run, estimate=False)
    add_expert(str(run), Registry(registry), PromptChoice("notes"))
    compare(run, listed("A run: `RUN/`"))
    compare(registry, listed("A registry of experts: `REGISTRY/`"))


def test_a_file_that_the_page_leaves_out_is_seen(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.json").touch()
    compare(tmp_path, {"a/NAME.json": "always", "c": "with a key"})
    for patterns in ({"a/NAME.jsonl": "sometimes"}, {"a/FILE": "always", "c": "always"}, {"FILE": "with a key"}):
        with pytest.raises(AssertionError):
            compare(tmp_path, patterns)
