"""A round or two of every kind of fault; `make soak` does them for an hour."""

import pytest

from tests.soak import soak
from tests.soak.kinds import Kind, Outcome
from tests.soak.soak import KINDS, Round, do_round, make_bases, table
from tests.soak.workspace import RECIPES, Base, Workspace, leftovers, outputs_of

SEEDS = (0,)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return make_bases(tmp_path_factory.mktemp("bases"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_round(kind, seed, bases, tmp_path):
    found = do_round(kind, seed, bases, tmp_path)
    assert found.outcome.verdict != "BAD", found.line


@pytest.mark.slow
def test_a_difference_is_seen(bases, tmp_path):
    """What the rounds rely on: two undisturbed runs are equal, and one byte, one value, one file too many are not."""
    workspace = Workspace(bases[0], tmp_path)
    assert workspace.limbeck().code == 0 and workspace.differs() is None
    assert (
        set(workspace.base.outputs) == set(outputs_of(workspace.run, bases[0].straight))
        and len(workspace.base.outputs) > 8
    )
    weights = workspace.run / "train" / "student" / "artifact" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "artifact/model.safetensors is another one" in str(workspace.differs())
    workspace.finished()
    scores = workspace.run / "evaluate" / "scores.json"
    scores.write_text(scores.read_text().replace('"kl": 0.0', '"kl": 0.5'))
    assert "scores.json is another one" in str(workspace.differs())
    workspace.finished()
    (workspace.run / "stages" / ".x.json.7.tmp").touch()
    assert leftovers(workspace.run) == ["stages/.x.json.7.tmp"]


def test_a_round_is_its_seed_and_an_error_of_a_round_is_bad(tmp_path, monkeypatch):
    drawn = []
    kind = Kind("dice", "draws", lambda _, rng: Outcome("found", str(drawn.append(rng.random()))))
    base = Base("none", tmp_path / "none")
    for seed in (1, 1, 2):
        done = do_round(kind, seed, [base], tmp_path)
    assert drawn[0] == drawn[1] != drawn[2] and not list(tmp_path.iterdir())
    assert done.line.startswith("found ") and done.line.endswith("--kind 'dice' --seed 2")
    broken = do_round(Kind("broken", "raises", lambda *_: Outcome("found", str(1 / 0))), 0, [base], tmp_path)
    assert broken.outcome.verdict == "BAD" and "ZeroDivisionError" in broken.outcome.note
    shown = table([done, broken, Round(kind, 3, Outcome("BAD"), 1.0)])
    assert shown.splitlines()[2:] == ["| dice | draws | 2 | 0 | 0 | 1 | 1 |", "| broken | raises | 1 | 0 | 0 | 0 | 1 |"]
    monkeypatch.setattr(soak, "rounds", lambda *_: iter([done]))
    assert soak.main(["--out", str(tmp_path / "t.md")]) == 0 and "dice" in (tmp_path / "t.md").read_text()


def test_names_are_unique_and_recipes_have_every_stage():
    assert len({kind.name for kind in KINDS}) == len(KINDS) and RECIPES
