"""Recipes of many kinds. Their paths are relative to a folder that `folder_of_files` fills."""

import shutil
from pathlib import Path

from limbeck.recipe import Recipe
from tests import tiny

GENERATE = {"kind": "generate", "n": 2, "max_tokens": 6}
ENDPOINT = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "stub-1", "api_key_env": None}
SCRATCH = {"kind": "scratch", "like": "teacher", "hidden_size": 32, "layers": 2, "heads": 2}
PROMPTS = {"kind": "files", "path": "prompts.jsonl", "prompt": "prompt", "reference": "reference"}
TASKS = {"verifier": {"kind": "regex"}, "max_tokens": 8, "source": PROMPTS}
CURATE = [
    {"kind": "finish", "allowed": ["stop", "length"]},
    {"kind": "exact_duplicates"},
    {"kind": "decontaminate", "paths": ["prompts.jsonl"]},
    {"kind": "verdicts", "path": "verdicts.csv"},
]

CHANGES = {
    "sampled": {},
    "top_k": {
        "trace": {"target": {"kind": "top_k", "k": 8, "tail": "renormalise"}},
        "objective": {"temperature": 2.0, "ce_weight": 0.5},
    },
    "live": {
        "trace": {"target": {"kind": "full"}},
        "objective": {
            "divergence": {"kind": "jsd", "beta": 0.3},
            "extra_terms": [{"divergence": {"kind": "reverse_kl"}}],
        },
    },
    "hybrid with a twin": {
        "seed": 3,
        "trace": {"target": {"kind": "hybrid"}},
        "objective": {"label_smoothing": 0.1, "ce_weight": 0.25, "position_weights": {"tokens": {"digits": 2.0}}},
        "train": {"twin": True, "accumulate": 2, "checkpoint_minutes": 1.0, "tensorboard": True},
    },
    "curated text": {
        "data": {"source": PROMPTS},
        "trace": {"mode": {**GENERATE, "think": "strip"}, "target": {"kind": "text"}},
        "curate": CURATE,
        "objective": {"ce_weight": 1.0},
        "evaluate": {"answers": 2, "tasks": TASKS},
    },
    "votes": {"data": {"source": PROMPTS}, "trace": {"mode": {**GENERATE, "n": 5}, "target": {"kind": "votes"}}},
    "rejection": {
        "data": {"source": PROMPTS},
        "trace": {"mode": {**GENERATE, "n": 4, "rejection": {"verifier": {"kind": "regex"}, "num_correct": 2}}},
    },
    "endpoint": {
        "data": {"source": PROMPTS},
        "teacher": {**ENDPOINT, "concurrency": 4, "on_change": "annotate", "system": "be brief"},
        "trace": {"mode": GENERATE, "target": {"kind": "top_k", "k": 4}},
        "student": SCRATCH,
    },
    "text of others": {
        "teacher": {"kind": "text"},
        "trace": {"target": {"kind": "text"}},
        "student": SCRATCH,
        "objective": {"ce_weight": 1.0},
    },
    "qad with exports": {
        "train": {"qad": {"quant": "q8_0"}, "twin": True},
        "export": [{"kind": "gguf", "quant": "q8_0"}, {"kind": "safetensors", "quant": "int8", "max_kl": 0.5}],
    },
}


def folder_of_files(folder: Path, teacher: Path) -> None:
    """What the recipes name: a model, and three files."""
    shutil.copytree(teacher, folder / "teacher")
    tiny.write_jsonl(folder / "text.jsonl", tiny.rows())
    tiny.write_jsonl(folder / "prompts.jsonl", [{"prompt": f"bird {n}", "reference": "[hgt]"} for n in range(24)])
    (folder / "verdicts.csv").write_text("id,verdict\n0123,keep\n")


def recipe_of_kind(kind: str) -> Recipe:
    tree = {
        "name": "kinds",
        "teacher": {"path": "teacher"},
        "data": {"source": {"kind": "files", "path": "text.jsonl", "text": "text", "topic": "topic"}, "max_length": 48},
        "student": {"kind": "prune", "layers": 2},
        "train": {"budget": {"kind": "steps", "steps": 4}, "batch_tokens": 200},
    }
    for section, change in CHANGES[kind].items():
        replaced = not isinstance(change, dict) or section in ("teacher", "student") or section not in tree
        tree[section] = change if replaced else {**tree[section], **change}
    return Recipe.model_validate(tree)
