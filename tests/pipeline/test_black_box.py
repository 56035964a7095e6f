"""One recipe labels at an endpoint, verifies, curates, trains, evaluates; killed anywhere, nothing is asked twice."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

import limbeck
from limbeck.endpoint import rate_limit
from limbeck.recipe import Recipe
from tests.endpoint.fake_server import FakeServer
from tests.label.asking import KEY
from tests.label.test_remote_real import real  # noqa: F401  (a fixture)
from tests.pipeline.killed import run_until_killed

PROMPTS = 24


@pytest.fixture
def birds(tmp_path):
    file = tmp_path / "birds.jsonl"
    lines = [{"prompt": f"name bird {n}", "reference": "[hgt]", "topic": "ab"[n % 2]} for n in range(PROMPTS)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def recipe_of(url: str, student: Path, birds: Path, **teacher) -> Recipe:
    settings = {"base_url": url, "model": "stub-1", "api_key_env": None, "timeout_seconds": 20, "concurrency": 4}
    return Recipe.model_validate(
        {
            "name": "birds",
            "teacher": {"kind": "openai", **settings, **teacher},
            "data": {
                "source": {"kind": "files", "path": str(birds), "prompt": "prompt", "reference": "reference"},
                "max_length": 48,
                "holdout": 0.25,
            },
            "trace": {
                "mode": {"kind": "generate", "n": 2, "max_tokens": 12},
                "target": {"kind": "text"},
                "shard_tokens": 400,
            },
            "curate": [
                {"kind": "finish", "allowed": ["stop", "length"]},
                {"kind": "exact_duplicates"},
                {"kind": "verify", "verifier": {"kind": "regex"}, "keep_unknown": True},
            ],
            "student": {"kind": "scratch", "like": str(student), "hidden_size": 32, "layers": 2, "heads": 2},
            "objective": {"ce_weight": 1.0},
            "train": {"budget": {"kind": "steps", "steps": 4}, "batch_tokens": 200, "precision": "float32"},
            "evaluate": {
                "answers": 1,
                "answer_tokens": 4,
                "bootstrap": 50,
                "tasks": {"verifier": {"kind": "regex"}, "max_tokens": 8},
            },
        }
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(rate_limit, "FIRST_DELAY", 0.01)


@pytest.mark.slow
def test_from_prompts_to_a_proven_student(tiny_llama, birds, tmp_path):
    with FakeServer() as server:
        recipe = recipe_of(server.url, tiny_llama, birds)
        assert limbeck.check_recipe(recipe).problems == []
        asked = server.counts.total()
        summary = limbeck.run_recipe(recipe, tmp_path / "run")
        assert server.counts.total() <= asked + 2 * PROMPTS + asked  # what check tried first may be tried once more
        total = server.counts.total()
        again = limbeck.run_recipe(recipe, tmp_path / "run")
        assert again["student"] == summary["student"] and server.counts.total() == total
    assert "known by its words only" in summary["verdict"]["sentence"]
    found = json.loads((tmp_path / "run" / "curate" / "summary.json").read_text())
    assert 0 < found["kept"] < found["candidates"]
    tasks = json.loads((tmp_path / "run" / "evaluate" / "tasks.json").read_text())
    assert "student" in tasks["models"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "stub-1" in page and "What the student learnt from" in page


EVENTS = [*(("fsync", count) for count in (4, 8, 12, 16, 20)), ("train", 1), ("artifact", 1)]


@pytest.mark.slow
def test_killed_anywhere_nothing_is_asked_twice(tiny_llama, birds, tmp_path):
    """Every kill can cost what is under way at that moment (4 at once), and nothing else; the end is the same."""
    replies: Counter[str] = Counter()
    with FakeServer() as server:
        # What the probe asks is of no row: it is asked once a store, and again where a kill came before that was noted.
        server.script = lambda seen: replies.update([seen.key] * ("name bird" in seen.said))
        recipe = recipe_of(server.url, tiny_llama, birds)
        assert run_until_killed(recipe, tmp_path / "straight") == 0
        assert replies.total() == len(replies) == 2 * PROMPTS
        kills = sum(run_until_killed(recipe, tmp_path / "killed", at=at, count=count) < 0 for at, count in EVENTS)
        assert run_until_killed(recipe, tmp_path / "killed") == 0
        assert kills >= 4 and len(replies) == 2 * PROMPTS
        assert replies.total() <= 4 * PROMPTS + 4 * kills
    assert weights(tmp_path / "killed") == weights(tmp_path / "straight")
    kept = [json.loads((tmp_path / name / "curate" / "kept.json").read_text()) for name in ("killed", "straight")]
    assert kept[0] == kept[1]


def weights(run: Path) -> str:
    return hashlib.sha256((run / "train" / "student" / "artifact" / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_real_server_from_end_to_end(real, tiny_llama, birds, tmp_path, monkeypatch):  # noqa: F811
    """`transformers serve` with faults in front of it; the key that it is sent is in no file."""
    monkeypatch.setenv("BIRDS_KEY", KEY)
    url, model = real
    with FakeServer(upstream=url) as server:
        faults = [None, "429", "cut", None, "reset"]
        server.script = lambda seen: faults[seen.number % len(faults)] if seen.attempt == 0 else None
        recipe = recipe_of(server.url, tiny_llama, birds, model=model, api_key_env="BIRDS_KEY")
        verify = "{kind: verify, verifier: {kind: regex}, keep_wrong: true}"
        measured = f"curate=[{{kind: finish, allowed: [length, stop]}}, {verify}]"
        recipe = recipe.override("trace.mode.n=1", measured)  # this server's replies to one prompt are all the same
        summary = limbeck.run_recipe(recipe, tmp_path / "run")
    assert summary["student"]["kl"] > 0
    tasks = json.loads((tmp_path / "run" / "evaluate" / "tasks.json").read_text())
    assert "student" in tasks["models"] and (tmp_path / "run" / "curate" / "pass_rates.json").exists()
    for file in (tmp_path / "run").rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
