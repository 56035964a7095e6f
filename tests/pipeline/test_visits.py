"""A run folder that other recipes visited: what is recorded is true, what was made is taken up, nothing is made twice.

Each recipe ends as it would have in a folder of its own, wherever the visits before it were cut off.
"""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest

from limbeck.store import TraceStore
from limbeck.system.rundir import RunDir
from limbeck.system.sealed import read_json
from tests import tiny
from tests.pipeline.killed import run_until_killed
from tests.pipeline.test_run import recipe_of
from tests.pipeline.visits import Visits, random_visits, state_of

OTHERS = {
    "hot": {"objective__temperature": 2.0},
    "slow": {"train__optimizer": {"lr": 1e-5}},
    "thin": {"student": {"kind": "prune", "layers": 1}},
    "short": {"evaluate": {"answers": 1, "answer_tokens": 3, "bootstrap": 20}},
    "other data": {"seed": 3},
}
SMALL = {
    "trace__shard_tokens": 150,
    "train__budget": {"kind": "steps", "steps": 3},
    "train__checkpoint_minutes": 1e-4,
    "train__keep_checkpoints": 1,
}


@pytest.fixture(scope="module")
def recipes(tiny_llama, tmp_path_factory):
    file = tmp_path_factory.mktemp("few") / "rows.jsonl"
    tiny.write_jsonl(file, tiny.rows(16))
    return {name: recipe_of(tiny_llama, file, **SMALL, **changes) for name, changes in {"own": {}, **OTHERS}.items()}


@pytest.fixture(scope="module")
def fresh(recipes, tmp_path_factory):
    """What each recipe makes in a folder of its own."""
    found = {}

    def state(name):
        if name not in found:
            run = Visits(tmp_path_factory.mktemp("fresh") / "run", recipes)
            assert run.visit(name, "evaluate")
            found[name] = state_of(run.path)
        return found[name]

    return state


def differing(run: Path, expected: dict) -> list[str]:
    found = state_of(run)
    return [name for name in {*found, *expected} if found.get(name) != expected.get(name)]


@pytest.fixture(scope="module")
def whole(recipes, tmp_path_factory):
    """A finished run: copy it."""
    run = Visits(tmp_path_factory.mktemp("whole") / "run", recipes)
    assert run.visit("own", "report")
    return run


@pytest.fixture
def finished(whole, tmp_path):
    shutil.copytree(whole.path, tmp_path / "run")
    return Visits(tmp_path / "run", whole.recipes, set(whole.made), set(whole.trained))


CUTS = [(name, cut) for name in OTHERS for cut in (8, 40)]
SLOW = [pytest.param(*pair, marks=pytest.mark.slow) for pair in CUTS]


@pytest.mark.slow
@pytest.mark.parametrize(("other", "cut"), [("hot", 25), ("short", 20), *SLOW])
def test_a_visit_that_is_cut_off_changes_nothing(other, cut, finished, fresh):
    assert not finished.visit(other, "evaluate", cut)
    assert finished.visit("own", "evaluate")
    assert differing(finished.path, fresh("own")) == []
    assert finished.left_behind() == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_random_visits(seed, recipes, fresh, tmp_path):
    """Each of them ends as it would have in a folder of its own."""
    visits = random_visits(seed, list(recipes), 120)
    run = Visits(tmp_path / "run", recipes)
    for name, until, cut in visits:
        run.visit(name, until, cut)
    for name in (visits[-1][0], "own")[not seed :]:  # the first seed is for each commit
        assert run.visit(name, "evaluate")
        assert differing(run.path, fresh(name)) == [], (seed, visits)
        assert run.left_behind() == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_visits_that_are_killed(seed, recipes, fresh, tmp_path):
    """Processes of their own, ended by SIGKILL at some fsync."""
    rng, run = random.Random(seed), Visits(tmp_path / "run", recipes)
    codes = []
    for _ in range(5):
        name, until = rng.choice(list(recipes)), rng.choice(["label", "train", "evaluate"])
        codes.append(run_until_killed(recipes[name], run.path, at="fsync", count=rng.randint(2, 60), until=until))
    assert set(codes) <= {0, -signal.SIGKILL} and -signal.SIGKILL in codes
    assert run.visit("own", "evaluate")
    assert differing(run.path, fresh("own")) == []
    assert run.left_behind() == []


# ---- what earlier versions left -------------------------------------------------------------------------------------


@pytest.fixture
def earlier(finished):
    """A finished run as an earlier version left it: records without identities, an evaluation without a manifest."""
    run = finished
    for file in (run.path / "stages").iterdir():
        record = read_json(file, "")
        earlier = {name: value for name, value in record.items() if name not in ("identity", "inputs")}
        file.write_text(json.dumps(earlier))
    for name in ("fingerprint", "MANIFEST.json"):
        (run.path / "evaluate" / name).unlink()
    return run


@pytest.mark.slow
def test_runs_of_earlier_versions_are_current_and_their_records_are_completed(earlier):
    assert earlier.visit("own", "evaluate")
    assert earlier.messages == [
        f"{stage}: nothing changed, skipped" for stage in ("data", "label", "student", "train", "evaluate")
    ]
    records = [RunDir(earlier.path).record(stage) for stage in ("data", "label", "student", "train", "evaluate")]
    assert all(record is not None and record.identity for record in records)


@pytest.mark.slow
def test_an_evaluation_of_an_earlier_version_is_kept(earlier, fresh):
    assert earlier.visit("short", "evaluate") and (earlier.path / "evaluate-earlier" / "scores.json").exists()
    assert earlier.visit("own", "evaluate")
    assert differing(earlier.path, fresh("own")) == []


@pytest.mark.slow
def test_records_of_earlier_versions_that_are_not_true_are_noticed(earlier, recipes, fresh, tmp_path):
    """A finished recipe, and another one that was killed in the store and the training which the records speak of."""
    other = Visits(tmp_path / "other", recipes)
    assert other.visit("hot", "train")
    for name in ("traces", "train/student"):
        shutil.rmtree(earlier.path / name)
        (other.path / name).rename(earlier.path / name)
    manifest = earlier.path / "traces" / "manifest.jsonl"
    manifest.write_text(manifest.read_text().split("\n")[0] + "\n")
    earlier.made, earlier.trained = set(), set()
    assert earlier.visit("own", "evaluate")
    assert differing(earlier.path, fresh("own")) == []


# ---- other rows ------------------------------------------------------------------------------------------------------


SHARED = [(*pair, cut) for pair in [(16, 5), (5, 16)] for cut in (30, 60, 10**9)]
MORE = [pytest.param(*each, marks=pytest.mark.slow) for each in SHARED]


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "other", "cut"), [(16, 5, 45), *MORE])
def test_a_store_that_serves_two_recipes_lacks_no_row_of_either(limit, other, cut, recipes, tmp_path):
    """They differ in their rows alone: they share a store, and a shard that one of them left is not made of fewer rows
    by the other."""
    names = {f"limit {each}": recipes["own"].override(f"data.limit={each}") for each in (limit, other)}
    run = Visits(tmp_path / "run", names)
    first, second = names
    run.visit(first, "label", cut)
    planned = (run.path / "traces" / "plan.json").exists()
    assert run.visit(second, "label")
    assert run.visit(first, "label")
    found = [trace.id for trace in TraceStore.open(run.path / "traces").traces()]
    assert len(found) == len(set(found))
    for name in (second, first):
        alone = Visits(tmp_path / name, names)
        assert alone.visit(name, "label")
        expected = [trace.id for trace in TraceStore.open(alone.path / "traces").traces()]
        assert set(expected) <= set(found)
    if planned:  # whoever came first has its store as it would be alone
        wanted = set(expected)
        assert [id for id in found if id in wanted] == expected
