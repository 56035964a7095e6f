"""Fingerprints of version 0.1 (commit fa16b14) hold: its runs, stores and registries are still current."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.errors import RecipeError
from limbeck.recipe import Recipe
from limbeck.recipe.recipe import dump_recipe, load_run_recipe
from limbeck.system.atomic import fingerprint

BASE = {
    "name": "x",
    "teacher": {"path": "t"},
    "data": {"source": {"kind": "stdlib"}},
    "student": {"kind": "prune", "layers": 2},
    "train": {"budget": {"kind": "steps", "steps": 4}},
}
OPENAI = {"kind": "openai", "model": "m", "on_change": "annotate"}
SCRATCH = {"kind": "scratch", "like": "s", "parameters": "1M"}
TEXT = {"ce_weight": 1.0}
REJECTION = {"verifier": {"kind": "exact", "normalize": True}, "num_correct": 2}
MODE = {"kind": "generate", "n": 4, "rejection": REJECTION}
STRIP = {"kind": "generate", "n": 4, "think": "strip"} | {
    "rejection": {"verifier": {"kind": "math", "timeout_seconds": 2.0}}
}
CURATE = (
    {"kind": "verify", "verifier": {"kind": "unit_tests", "timeout_seconds": 1.0}},
    {"kind": "verify", "verifier": {"kind": "judge", "endpoint": OPENAI}},
    {"kind": "quota", "total": 5, "weights": {"full": 2.0}},
)
OBJECTIVE = {
    "divergence": {"kind": "jsd"},
    "temperature": {"kind": "adaptive", "certain": 1.0, "unsure": 2.0, "unsure_from": 3.0},
    "extra_terms": ({"divergence": {"kind": "tvd"}, "weight": 0.5},),
    "position_weights": {
        "teacher": {"certain": 1.0, "unsure": 2.0, "unsure_from": 0.5},
        "place": {"kind": "first", "tokens": 2, "weight": 0.5},
    },
}
TRAIN = {"budget": {"kind": "tokens", "tokens": 100}, "schedule": {"kind": "wsd"}, "qad": {"quant": "q4_0"}}
TASKS = {"verifier": {"kind": "exact", "normalize": True}}
SECTIONS = ("teacher", "data", "trace", "curate", "student", "objective", "train", "evaluate", "export")


def top_k(k: int = 5, tail: str = "cell") -> dict[str, Any]:
    return {"kind": "top_k", "k": k, "tail": tail}


@pytest.mark.parametrize(
    ("changes", "whole", "sections"),
    [
        ({}, "71395b508fb8aaf9", "a4fc9563228ec71e"),
        (
            {"teacher": {"kind": "gguf", "path": "t.gguf"}, "seed": 3, "scope": "x"},
            "66f4e6235218d2d5",
            "72fe374c018785fa",
        ),
        (
            {"teacher": {"kind": "text"}, "student": SCRATCH, "trace": {"target": {"kind": "text"}}, "objective": TEXT},
            "05dfbda83947864a",
            "2be5306b7c718532",
        ),
        (
            {"teacher": OPENAI, "student": SCRATCH, "trace": {"mode": {"kind": "generate"}, "target": top_k()}},
            "95f688be701873ed",
            "a05c46cb19e4af70",
        ),
        (
            {
                "teacher": {"kind": "vllm", "model": "m", "prices": {"input": 1.0, "output": 2.0}},
                "student": SCRATCH,
                "trace": {"target": top_k(tail="gold")},
            },
            "e5face42e03fb242",
            "96da0162c17b86bb",
        ),
        ({"trace": {"target": top_k(8)}}, "9bf31d483fcebb93", "82587c1be2184b34"),
        ({"trace": {"target": top_k(8, "spread")}}, "758d18767e022864", "6b23ae296fa706c7"),
        (
            {"trace": {"mode": MODE, "target": {"kind": "text"}}, "objective": TEXT},
            "f4f303a8006cc4c1",
            "f2680b6195d8bf93",
        ),
        ({"trace": {"mode": STRIP, "target": {"kind": "votes"}}}, "a30135be8c88cf22", "c4d95d5d6a598a78"),
        ({"curate": CURATE}, "32389f9b14fb72b0", "08ec9554f83ec03b"),
        ({"trace": {"target": {"kind": "full"}}, "objective": OBJECTIVE}, "9ca3504787f0a193", "d5bddea0bbdbc603"),
        ({"train": {**TRAIN, "twin": True}}, "831ff4b0d7c09818", "a68286e8dfa40ece"),
        (
            {
                "evaluate": {"answers": 0, "tasks": TASKS, "harness": {"tasks": ("a",)}},
                "export": ({"kind": "gguf"}, {"kind": "onnx", "quant": "int4", "max_kl": 0.1}),
            },
            "6cd051b0d2f5e76e",
            "71b43410ec8db6e2",
        ),
    ],
)
def test_fingerprints_of_recipes_are_those_of_version_0_1(changes: dict[str, Any], whole: str, sections: str):
    recipe = Recipe.model_validate({**BASE, **changes})
    assert (recipe.fingerprint(), recipe.fingerprint(*SECTIONS)) == (whole, sections)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(MODE, "f23f53318a426f9b"), (STRIP, "3154cf0a803b73ba"), ({"kind": "score"}, "7983193587426854")],
)
def test_what_a_store_keeps_of_the_mode_is_as_in_version_0_1(mode: dict[str, Any], expected: str):
    assert fingerprint(Recipe.model_validate({**BASE, "trace": {"mode": mode}}).trace.mode.identity) == expected


OLD = """\
name: x
teacher: {kind: openai, model: m, on_change: mark}
data: {source: {kind: stdlib}}
trace:
  mode: {kind: generate, n: 4, enough: {verifier: {kind: exact, fold: true}, right: 2}}
  target: {kind: top_k, k: 8, rest: spread}
curate:
- {kind: verify, verifier: {kind: unit_tests, seconds: 1.0}}
- {kind: verify, verifier: {kind: judge, endpoint: {kind: openai, model: m, on_change: mark}}}
- {kind: quota, total: 5, weights: {full: 2.0}}
student: {kind: prune, layers: 2}
objective:
  divergence: {kind: jsd}
  temperature: {kind: adaptive, certain: 1.0, unsure: 2.0, full: 3.0}
  also: [{divergence: {kind: tvd}, weight: 0.5}]
  position_weights:
    teacher: {certain: 1.0, unsure: 2.0, full: 0.5}
    place: {kind: first, tokens: 2, weight: 0.5}
train: {budget: {kind: steps, steps: 4}}
evaluate: {answers: 0, tasks: {verifier: {kind: exact, fold: true}}, harness: {tasks: [a]}}
"""


def test_a_run_of_version_0_1_opens(tmp_path):
    (tmp_path / "recipe.yaml").write_text(OLD)
    recipe = load_run_recipe(tmp_path)
    assert recipe.fingerprint() == "9a0042c15133db2c"
    assert recipe.curate[-1].model_dump()["weights"] == {"full": 2.0}, "names of a map are the user's"
    with pytest.raises(RecipeError) as caught:
        Recipe.load(tmp_path / "recipe.yaml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 9 and all("called" in line for line in lines)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_run_recipe(tmp_path) == Recipe.load(tmp_path / "recipe.yaml") == recipe
