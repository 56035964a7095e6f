"""What a teacher's own distributions make doubtful: measured on logits of known kinds, and told with the key."""

import numpy as np
import pytest
import torch

from limbeck.check import teacher as doubts
from limbeck.check.teacher import TeacherStats, doubt_of, warn_of_teacher
from limbeck.models.hf import HfLM
from limbeck.types import Row
from tests import tiny
from tests.recipes import tiny_recipe

TOP_K = "trace.target={kind: top_k, k: 40}"


def ordinary(rows=40, vocab=1000):
    """Like a language model's: a leader in most rows, a tail that falls over many orders of magnitude."""
    draw = torch.Generator().manual_seed(0)
    z = 4.0 * torch.randn(rows, vocab, generator=draw)
    z[:, 7] += 18.0
    return z


def smoothed(rows=40, vocab=1000, share=0.1):
    p = torch.full((rows, vocab), share / vocab)
    p[torch.arange(rows), torch.arange(rows)] += 1 - share
    return p.log()


def test_an_ordinary_teacher():
    found = doubt_of(ordinary(), 40)
    assert 0.5 < found.sure < 0.99
    assert found.evenness < 0.05
    assert found.tail < 0.05


def test_a_smoothed_teacher_has_an_even_tail():
    found = doubt_of(smoothed(), 40)
    assert found.evenness == pytest.approx(1.0, abs=0.01)
    assert found.sure == pytest.approx(0.9, abs=0.01)
    assert found.tail == pytest.approx(0.1 * 960 / 1000, rel=0.01)


def test_a_certain_teacher():
    z = torch.zeros(5, 50)
    z[:, 3] = 1e4
    assert doubt_of(z, 1) == TeacherStats(1.0, 0.0, 0.0)
    z[:, :3] = -torch.inf
    assert np.isfinite(doubt_of(z, 1)).all()
    assert doubt_of(torch.zeros(0, 50), 1) == TeacherStats(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("found", "overrides", "where", "message"),
    [
        (TeacherStats(0.9995, 0.0, 0.0), [], "teacher.path", "hardly more than labels"),
        (TeacherStats(0.9, 0.9, 0.0), ["objective.temperature=4"], "objective.temperature", "label smoothing"),
        (
            TeacherStats(0.9, 0.9, 0.0),
            ["trace.target.kind=full", "objective.temperature={kind: linear, start: 1, end: 4}"],
            "objective.temperature",
            "goes up to 4",
        ),
        (TeacherStats(0.9, 0.0, 0.2), [TOP_K], "trace.target.k", "20.0% of the teacher's mass"),
    ],
)
def test_warnings(monkeypatch, found, overrides, where, message):
    monkeypatch.setattr(doubts, "doubt_of", lambda *_: found)
    monkeypatch.setattr(doubts, "_logits", lambda *_: None)
    told = warn_of_teacher(tiny_recipe(*overrides), None, [])
    assert [item.where for item in told] == [where]
    assert message in told[0].message


@pytest.mark.parametrize(
    ("found", "overrides"),
    [
        (TeacherStats(0.9, 0.0, 0.5), []),
        (TeacherStats(0.9, 0.9, 0.0), ["objective.temperature=2"]),
        (TeacherStats(0.9, 0.01, 0.0), ["objective.temperature=4"]),
        (TeacherStats(0.9, 0.0, 0.01), [TOP_K]),
        (TeacherStats(0.9999, 1.0, 1.0), ["objective.ce_weight=1"]),
    ],
)
def test_no_warnings(monkeypatch, found, overrides):
    monkeypatch.setattr(doubts, "doubt_of", lambda *_: found)
    monkeypatch.setattr(doubts, "_logits", lambda *_: None)
    assert warn_of_teacher(tiny_recipe(*overrides), None, []) == []


@pytest.mark.parametrize("overrides", [[], ["trace.mode.kind=generate"]])
def test_it_reads_a_few_rows(overrides):
    teacher = HfLM.wrap(tiny.build_model(), tiny.build_tokenizer(), name="teacher")
    ids = np.arange(3, 60, dtype=np.int32)
    spans = () if overrides else ((1, 57),)
    rows = [Row(str(n), "heldout" if n % 2 else "train", "", "", ids, spans, "test") for n in range(40)]
    logits = doubts._logits(tiny_recipe(*overrides), teacher, rows)
    assert logits.shape == (8 * 56, 384)
    # A random model of a small vocabulary leaves much to the tail.
    told = warn_of_teacher(tiny_recipe(TOP_K, *overrides), teacher, rows)
    assert [item.where for item in told] == ["trace.target.k"]
