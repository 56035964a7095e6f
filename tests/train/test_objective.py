"""A recipe's objective as the terms of a step: schedules, resuming, and a twin that stays fair."""

import json

import pytest
import torch

from limbeck.errors import Stopped
from limbeck.losses import Adaptive, Term, Terms
from limbeck.models.hf import HfLM
from limbeck.recipe import Objective
from limbeck.train.loop import TrainContext
from limbeck.train.objective import scheduled, scheduled_values, terms_at, twin_terms
from limbeck.train.parallel import Ranks
from limbeck.train.run import Supervision, train_student
from limbeck.types import Vocab
from tests import tiny
from tests.recipes import tiny_recipe
from tests.train import two_ranks


def objective(**values) -> Objective:
    return Objective.model_validate(values)


def test_the_default_is_forward_kl():
    assert terms_at(objective(), 0.0) == Terms()
    assert scheduled_values(objective(), 0.5) == {}


def test_everything_arrives():
    made = terms_at(
        objective(
            divergence={"kind": "jsd", "beta": 0.1},
            temperature={"kind": "adaptive", "by": "confidence", "certain": 3.0, "unsure": 1.0, "unsure_from": 0.5},
            extra_terms=(
                {"divergence": {"kind": "mse"}, "weight": 0.2},
                {"divergence": {"kind": "tvd"}, "temperature": 2.0},
            ),
            ce_weight=0.3,
            label_smoothing=0.1,
            position_weights={"teacher": {"certain": 0.5, "unsure": 1.5, "unsure_from": 2.0}},
        ),
        0.7,
    )
    assert made == Terms(
        "jsd",
        Adaptive("confidence", 3.0, 1.0, 0.5),
        0.3,
        {"beta": 0.1},
        0.1,
        (Term("mse", 1.0, 0.2), Term("tvd", 2.0)),
        Adaptive("entropy", 0.5, 1.5, 2.0),
    )


@pytest.mark.parametrize(
    ("kind", "over", "values"),
    [("linear", 1.0, (4.0, 3.25, 2.5, 1.0)), ("cosine", 1.0, (4.0, 3.5607, 2.5, 1.0)), ("linear", 0.5, (4, 2.5, 1, 1))],
)
def test_schedules(kind, over, values):
    made = objective(temperature={"kind": kind, "start": 4.0, "end": 1.0, "over": over})
    for progress, value in zip((0.0, 0.25, 0.5, 1.0), values, strict=True):
        assert terms_at(made, progress).temperature == pytest.approx(value, abs=1e-4)
        assert scheduled_values(made, progress) == {"temperature": scheduled(made.temperature, progress)}


def test_label_smoothing_waits_for_cross_entropy():
    made = objective(ce_weight={"kind": "linear", "start": 0.5, "end": 0.0}, label_smoothing=0.1)
    assert terms_at(made, 0.5) == Terms(ce_weight=0.25, label_smoothing=0.1)
    assert terms_at(made, 1.0) == Terms()


def test_the_twin_is_cross_entropy_alone():
    assert twin_terms(two_ranks.OBJECTIVE) == Terms(ce_weight=1.0, label_smoothing=0.1)


# ---- whole runs ------------------------------------------------------------------------------------------------------

SCHEDULED = (
    "trace.target.kind=full",
    "objective.temperature={kind: linear, start: 4, end: 1}",
    "objective.extra_terms=[{divergence: {kind: hellinger}, weight: 0.5}]",
    "objective.ce_weight={kind: cosine, start: 0.0, end: 0.5}",
    "objective.position_weights.place={kind: ramp, tokens: 5, start: 0.5, end: 1}",
    "objective.position_weights.tokens.punctuation=2",
)


@pytest.fixture
def recipe(tiny_llama):
    budget = "train.budget={kind: steps, steps: 6}"
    small = ("train.batch_tokens=60", "train.precision=float32", "train.optimizer.lr=3e-3")
    return tiny_recipe(f"teacher.path={tiny_llama}", budget, *small)


@pytest.fixture
def teacher():
    return HfLM.wrap(tiny.build_model("llama", seed=7), tiny.build_tokenizer(), name="teacher")


def supervision(teacher):
    return Supervision("live" if teacher else "text", Vocab(384), teacher=teacher)


def train(recipe, folder, out, teacher=None, stop_after=None):
    """The weights after training; stopped and run again where asked for."""
    calls = []
    quiet = lambda *_: None  # noqa: E731
    ask = lambda: calls.append(1) or len(calls) == stop_after  # noqa: E731
    job = TrainContext("train", out, 0, Ranks(), quiet, quiet, ask)
    if stop_after:
        with pytest.raises(Stopped):
            train_student(recipe, two_ranks.rows(), folder, supervision(teacher), job)
    return train_student(recipe, two_ranks.rows(), folder, supervision(teacher), job).model.state_dict()


def metrics(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key[:6] not in ("second", "tokens", "crc")} for line in lines]


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_resuming_under_schedules_is_exact(recipe, teacher, tiny_llama, tmp_path):
    scheduled_recipe = recipe.override(*SCHEDULED)
    whole = train(scheduled_recipe, tiny_llama, tmp_path / "whole", teacher)
    parts = train(scheduled_recipe, tiny_llama, tmp_path / "parts", teacher, stop_after=3)
    assert equal(whole, parts)
    lines = metrics(tmp_path / "whole")
    assert lines == metrics(tmp_path / "parts")
    assert [line["temperature"] for line in lines] == pytest.approx([3.75, 3.25, 2.75, 2.25, 1.75, 1.25])
    assert lines[0]["ce_weight"] < lines[-1]["ce_weight"] < 0.5
    assert not equal(whole, train(recipe.override(*SCHEDULED[:1]), tiny_llama, tmp_path / "other", teacher))


@pytest.mark.slow
def test_the_twin_hears_nothing_of_the_teacher(recipe, tiny_llama, tmp_path):
    """Divergences, schedules and weights by the teacher do not reach it; weights by token and place, and label
    smoothing, do: what differs between student and twin is the teacher alone."""
    by_teacher = "objective.position_weights.teacher={certain: 0.1, unsure: 3}"
    bare = train(recipe, tiny_llama, tmp_path / "bare")
    assert equal(bare, train(recipe.override(*SCHEDULED[:4], by_teacher), tiny_llama, tmp_path / "twin"))
    for number, shared in enumerate(("objective.label_smoothing=0.2", SCHEDULED[4], SCHEDULED[5])):
        changed = recipe.override(shared, "objective.ce_weight=0.1")
        assert not equal(bare, train(changed, tiny_llama, tmp_path / f"shared-{number}"))
