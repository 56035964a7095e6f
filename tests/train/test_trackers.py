"""Metrics also go where the recipe says; a tracker that fails ends nothing."""

import json
import logging
import sys
import types

import pytest

from limbeck.errors import MissingExtra, RecipeError
from limbeck.recipe import Recipe, StepsBudget, Train
from limbeck.train import trackers
from limbeck.train.checkpoint import FitState
from limbeck.train.log import MetricsWriter
from limbeck.types import Cursor
from tests.recipes import tiny_recipe


class FakeRun:
    def __init__(self, fails: str = "") -> None:
        self.fails, self.lines, self.finished = fails, [], 0

    def log(self, values, *, step):
        if self.fails == "log":
            raise ConnectionError("nobody there")
        self.lines.append((step, values))

    def finish(self):
        self.finished += 1
        if self.fails == "finish":
            raise ConnectionError("nobody there")


@pytest.fixture
def service(monkeypatch):
    """A module of that name, whose runs are kept."""

    def install(name, fails=""):
        asked, runs = [], []

        def init(**arguments):
            print("a banner")
            asked.append(arguments)
            if fails == "init":
                raise RuntimeError("not logged in")
            runs.append(FakeRun(fails))
            return runs[-1]

        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(init=init))
        return types.SimpleNamespace(asked=asked, runs=runs)

    return install


def train(*names, **more) -> Train:
    return Train(budget=StepsBudget(steps=3), trackers=names, **more)


def state(step: int) -> FitState:
    return FitState(step=step, tokens=10 * step, positions=5 * step, seconds=1.0, cursor=Cursor(0, step))


def write(out, settings, steps, *, first=0):
    with MetricsWriter(out, first, settings, write=True) as metrics:
        for step in steps:
            metrics.write(state(step), {"loss": 1.0 / step}, rate=8.0)


def test_each_step_goes_to_each_tracker(tmp_path, service, capsys):
    found = [service("trackio"), service("wandb")]
    out = tmp_path / "my-run" / "train" / "student"
    write(out, train("trackio", "wandb"), [1, 2])
    for each in found:
        (run,) = each.runs
        expected = [(1, {"train/loss": 1.0, "train/tokens_per_second": 8.0})]
        assert run.lines[:1] == expected and len(run.lines) == 2 and run.finished == 1
        assert each.asked[0]["project"] == "limbeck" and each.asked[0]["name"].startswith("my-run-student")
        assert each.asked[0]["config"]["budget"] == {"kind": "steps", "steps": 3} and each.asked[0]["resume"] == "allow"
    assert capsys.readouterr().out == "", "a banner is no result"


def test_a_resumed_job_is_the_same_run_and_a_new_one_is_not(tmp_path, service):
    found = service("wandb")
    for steps, first in (([1, 2], 0), ([3], 2), ([1], 0)):
        write(tmp_path, train("wandb"), steps, first=first)
    begun, resumed, anew = (asked["id"] for asked in found.asked)
    assert begun == resumed != anew


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_named_once_and_dropped(tmp_path, service, fails, caplog):
    bad, good = service("wandb", fails), service("trackio")
    with caplog.at_level(logging.WARNING, "limbeck"):
        write(tmp_path, train("wandb", "trackio"), [1, 2, 3])
    (record,) = caplog.records
    assert "tracker wandb is dropped" in record.getMessage() and record.name == "limbeck.train.trackers"
    assert len(good.runs[0].lines) == 3 and good.runs[0].finished == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert all(run.finished <= 1 for run in bad.runs)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_package_that_is_not_there(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'limbeck\[{name}\]'"):
        MetricsWriter(tmp_path, 0, train(name), write=True)


def test_other_ranks_track_nothing(tmp_path, service):
    found = service("wandb")
    with MetricsWriter(tmp_path, 0, train("wandb"), write=False) as metrics:
        metrics.write(state(1), {"loss": 1.0}, rate=1.0)
    assert found.asked == [] and not list(tmp_path.iterdir())


def test_tensorboard_comes_through_the_same_hook(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write(tmp_path, train(tensorboard=True), [1, 2])
    write(tmp_path, train(tensorboard=True), [2, 3], first=1)
    read = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [each.step for each in read.Scalars("train/loss")] == [1, 2, 3]


def test_fingerprints_are_those_from_before_there_were_trackers():
    recipe = tiny_recipe()
    assert "trackers" not in recipe.model_dump(mode="json")["train"] and "trackers" not in recipe.train.stored_form()
    tracked = recipe.override("train.trackers=[wandb]")
    assert tracked.model_dump(mode="json")["train"]["trackers"] == ["wandb"]
    assert Recipe.model_validate_json(json.dumps(tracked.model_dump(mode="json"))) == tracked


def test_an_unknown_one_is_refused():
    with pytest.raises(RecipeError, match=r"is \['mlflow'\]; it must be a list of trackio and wandb"):
        tiny_recipe("train.trackers=[mlflow]")
    assert tiny_recipe("train.trackers=[wandb, wandb]").train.all_trackers == ("wandb",)


def test_names_are_those_of_the_recipe():
    assert set(trackers.TRACKERS) == set(train("trackio", "wandb", tensorboard=True).all_trackers)
