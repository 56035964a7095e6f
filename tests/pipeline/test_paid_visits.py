"""Recipes that visit one run folder in turn, with a paid teacher: no prompt is asked twice for the same settings."""

import os
import random
import signal

import pytest

from limbeck.errors import Stopped
from limbeck.pipeline.run import run_recipe
from limbeck.recipe import Recipe
from tests import tiny
from tests.endpoint.fake_server import FakeServer
from tests.label.asking import KEY, files_of
from tests.pipeline.kinds import SCRATCH

HEATS = (0.5, 0.75, 1.0)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def server():
    with FakeServer(latency=0.03) as server:
        yield server


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    tiny.write_jsonl(file, [{"prompt": f"name bird {number}"} for number in range(20)])
    return file


def recipe_of(server, prompts, model, heat, target) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "paid",
            "teacher": {"kind": "openai", "base_url": server.url, "model": "stub-1", "concurrency": 3},
            "data": {"source": {"kind": "files", "path": str(prompts), "prompt": "prompt"}, "max_length": 48},
            "trace": {
                "mode": {"kind": "generate", "max_tokens": 8, "temperature": heat, "n": 3 if target == "votes" else 1},
                "target": {"kind": target},
                "shard_tokens": 120,
            },
            "student": {**SCRATCH, "like": str(model)},
            "objective": {"ce_weight": 1.0} if target == "text" else {},
            "train": {"budget": {"kind": "steps", "steps": 1}},
        }
    )


def asked(server, heat) -> int:
    return sum(body.get("temperature") == heat for body in server.bodies)


def label(recipe, run, server, stop_after=None) -> bool:
    """Label; stopped politely after some requests, where that is given."""
    begun = server.counts.total()

    def script(request):
        if stop_after is not None and request.number == begun + stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    server.script = script
    try:
        run_recipe(recipe, run, until="label", estimate=False)
    except Stopped:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("target", ["text", pytest.param("votes", marks=pytest.mark.slow)])
def test_nothing_is_paid_twice_whoever_comes_between(target, server, prompts, tiny_llama, tmp_path):
    """Random visits of three settings, most of them stopped in the middle. Each ends with the store of a fresh run, for
    no more requests. Those that find out what the endpoint can do, at temperature 1, serve all three."""
    recipes = {heat: recipe_of(server, prompts, tiny_llama, heat, target) for heat in HEATS}
    stores, requests = {}, {}
    for heat, recipe in recipes.items():
        assert label(recipe, tmp_path / f"fresh {heat}", server)
        stores[heat] = files_of(tmp_path / f"fresh {heat}" / "traces")
        requests[heat] = asked(server, heat)
    server.seen.clear()
    rng, run = random.Random(target), tmp_path / "run"
    for _ in range(8):
        label(recipes[rng.choice(HEATS)], run, server, rng.choice([2, 6, 10, None]))
    for heat in rng.sample(HEATS, 3):
        assert label(recipes[heat], run, server)
        found = files_of(run / "traces")
        assert {name for name in stores[heat] if found.get(name) != stores[heat][name]} <= {"endpoint.json"}
    paid = {heat: asked(server, heat) for heat in HEATS}
    assert all(paid[heat] <= requests[heat] for heat in HEATS), (paid, requests)


@pytest.mark.slow
def test_going_back_to_a_finished_store_costs_nothing(server, prompts, tiny_llama, tmp_path):
    """Finished, finished with others, begun anew, others still, and back: what is set aside is there once more."""
    one, two, three = (recipe_of(server, prompts, tiny_llama, heat, "text") for heat in HEATS)
    assert label(one, tmp_path, server)
    whole = files_of(tmp_path / "traces")
    assert label(two, tmp_path, server)
    assert label(one, tmp_path, server)
    assert not label(three, tmp_path, server, stop_after=3)
    paid = len(server.seen)
    assert label(one, tmp_path, server)
    assert files_of(tmp_path / "traces") == whole and len(server.seen) == paid
