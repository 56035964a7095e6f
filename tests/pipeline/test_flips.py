"""Every file of a finished run, with a bit or a byte changed."""

import random
from collections import Counter

import pytest

from limbeck.pipeline.run import run_recipe
from tests import tiny
from tests.pipeline.flips import check_flip, draw_flip, kinds_of_files, read_all
from tests.pipeline.test_run import recipe_of
from tests.pipeline.visits import state_of

RULE = {"kind": "verify", "verifier": {"kind": "regex", "pattern": "(?s).*"}}


@pytest.fixture(scope="module")
def whole(tiny_llama, tmp_path_factory):
    """A finished run that has every kind of file, and what is read of it."""
    file = tiny.write_jsonl(tmp_path_factory.mktemp("few") / "rows.jsonl", tiny.rows(24))
    more = {"train__twin": True, "train__budget": {"kind": "steps", "steps": 2}, "curate": [RULE]}
    recipe = recipe_of(tiny_llama, file, **more)
    run = tmp_path_factory.mktemp("whole") / "run"
    run_recipe(recipe, run)
    return recipe, run, {**read_all(run), "state": state_of(run)}


def flips(run, seed, num):
    """`num` flips, every kind of file in turn."""
    rng, kinds = random.Random(seed), list(kinds_of_files(run).values())
    rng.shuffle(kinds)
    return [draw_flip(run, kinds[n % len(kinds)], rng) for n in range(num)]


@pytest.mark.slow
def test_a_flip_is_found_healed_or_without_effect(whole, tmp_path):
    recipe, run, expected = whole
    for flip in flips(run, "quick", 3):
        check_flip(flip, recipe, run, tmp_path / "run", expected)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
def test_many_flips(part, whole, tmp_path):
    recipe, run, expected = whole
    counts = Counter(
        check_flip(flip, recipe, run, tmp_path / "run", expected) for flip in flips(run, f"long {part}", 60)[part::6]
    )
    assert counts.total() == 10
