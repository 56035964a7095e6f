"""Sources, and what the house promises of them: each is a class of its own, and the loop is none the wiser."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.errors import RecipeError, TeacherError
from limbeck.losses import Terms
from limbeck.models.hf import HfLM
from limbeck.recipe import Constant, EpochsBudget, Optimizer, StepsBudget, Train
from limbeck.text.packing import pack
from limbeck.train.distiller import Distiller
from limbeck.train.loop import TrainContext, fit
from limbeck.train.sources import EpochPlan, MixedSource, RowSource, live, one_ahead, plain
from limbeck.train.step import _Sums
from limbeck.types import Batch, Cursor, LossOut, Ranks, Row, Step, Vocab
from tests import tiny
from tests.train import two_ranks

CPU = torch.device("cpu")
START = Cursor()
quiet = lambda *_: None  # noqa: E731


def settings(steps=3, **more):
    values = {"batch_tokens": 40, "accumulate": 2, "precision": "float32", **more}
    return Train(
        budget=StepsBudget(steps=steps), optimizer=Optimizer(lr=1e-2, weight_decay=0.0), schedule=Constant(), **values
    )


def context(out, stop=lambda: False):
    return TrainContext("train", out, 0, Ranks(), quiet, quiet, stop)


def dies(number):
    """Kills this process at that call: in that step, behind the checkpoint of the step before."""
    calls = itertools.count(1)
    return lambda: next(calls) == number and os.kill(os.getpid(), signal.SIGKILL)


def killed(training, out):
    """One of this module's trainings in a process of its own, which SIGKILL ends in step 3 of 4."""
    call = f"from pathlib import Path; from tests.train.test_sources import *; {training}(Path({str(out)!r}), dies(3))"
    assert subprocess.run([sys.executable, "-c", call], check=False).returncode == -signal.SIGKILL
    assert [each.name for each in (out / "checkpoints").glob("step-*")]


def rows_source(num=12):
    rows = two_ranks.rows(num)
    return RowSource(rows, EpochPlan(rows, 40, 0), plain(CPU))


def student():
    return Distiller(tiny.build_model("llama"), Terms(ce_weight=1.0), vocab=Vocab(384))


# ---- proof: rows that nobody knows beforehand ------------------------------------------------------------------------


class Grown:
    """Rows that are made when they are asked for; how long they get, only the making tells."""

    def draw(self, cursor: Cursor, count: int, ranks: Ranks) -> Step:
        made = []
        for number in range(count)[ranks.rank :: ranks.world]:
            chance = np.random.default_rng((7, cursor.index, number))
            ids = [int(chance.integers(3, 380))]
            while chance.random() > 0.1:
                ids.append(int(chance.integers(3, 380)))
            ids.append(2)
            made.append(pack([Row("grown", "train", "", "", np.array(ids, np.int32), ((1, len(ids)),), "")]))
        num = sum(batch.num_supervised for batch in made)
        return Step(made, len(made), num, num + len(made), Cursor(0, cursor.index + 1))

    def epoch_batches(self, epoch: int) -> None:
        return None


def grow(out, stop=lambda: False):
    made = student()
    return made, fit(made, Grown(), settings(4, checkpoint_minutes=1e-9), context(out, stop))


@pytest.mark.slow
def test_rows_of_unknown_length_are_trained_killed_and_resumed(tmp_path):
    killed("grow", tmp_path / "two")
    (whole, one), (resumed, two) = grow(tmp_path / "whole"), grow(tmp_path / "two")
    assert (one.positions, one.tokens) == (two.positions, two.tokens) and one.positions < one.tokens
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_epochs_of_rows_without_an_end_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="no end"):
        fit(
            student(),
            Grown(),
            settings().model_copy(update={"budget": EpochsBudget(epochs=1)}),
            context(tmp_path / "e"),
        )


# ---- proof: a frozen part and an extra projection --------------------------------------------------------------------


class Matching(nn.Module):
    """A projection of its own, and a loss on what it makes of the student's hidden rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.projection = nn.Linear(64, 5)

    def forward(self, batch: Batch, hidden_ND: torch.Tensor) -> torch.Tensor:
        return (self.projection(hidden_ND) - batch.labels_N[:, None] / 384).square().sum()


def half_frozen():
    model = tiny.build_model("llama")
    model.get_input_embeddings().requires_grad_(False)
    return Distiller(model, Terms(ce_weight=1.0), vocab=Vocab(384), extras={"matching": Matching()})


def train_half(out, stop=lambda: False):
    made = half_frozen()
    fit(made, rows_source(), settings(4, checkpoint_minutes=1e-9), context(out, stop))
    return made


@pytest.mark.slow
def test_a_frozen_part_stays_and_a_projection_is_resumed_bit_equal(tmp_path):
    killed("train_half", tmp_path / "two")
    start, whole, resumed = half_frozen(), train_half(tmp_path / "whole"), train_half(tmp_path / "two")
    moved = set()
    for (name, a), b, c in zip(whole.named_parameters(), resumed.parameters(), start.parameters(), strict=True):
        assert torch.equal(a, b), name
        moved |= {name} if not torch.equal(a, c) else set()
    assert "extras.matching.projection.weight" in moved
    assert "student.model.layers.0.self_attn.q_proj.weight" in moved
    assert "student.model.embed_tokens.weight" not in moved
    logged = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert len(logged) == 4 and all('"matching": ' in line for line in logged)


# ---- proof: a head whose columns are label words ---------------------------------------------------------------------


def test_a_head_of_label_words_learns_classes(tmp_path):
    """Three words of 384 are the columns; labels count columns. Chosen rows of the head learn, the others do not."""
    words_V = torch.tensor([17, 200, 301])
    model = tiny.build_model("llama", seed=5)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # apart from the embedding
    made = Distiller(model, Terms(ce_weight=1.0), vocab=Vocab(3, "sentiment", words_V))
    rows = [replace(row, ids=np.append(row.ids, 0).astype(np.int32)) for row in two_ranks.rows(9)]
    rows = [replace(row, spans=((len(row.ids) - 1, len(row.ids)),)) for row in rows]

    def labelled(items):
        batch = pack(items)
        return replace(batch, labels_N=torch.tensor([int(row.ids[0]) % 3 for row in items]))

    before = made.student.get_output_embeddings().weight.detach().clone()
    made.student.get_input_embeddings().requires_grad_(False)
    source = RowSource(rows, EpochPlan(rows, 400, 0), labelled)
    first = made(labelled(rows))
    own = tiny.build_model("llama", seed=5).eval()
    z_NV = torch.cat([own(torch.from_numpy(row.ids[None].astype(np.int64))).logits[0, -2:-1] for row in rows])
    truth = torch.nn.functional.cross_entropy(z_NV[:, words_V], labelled(rows).labels_N, reduction="sum")
    assert float(first.loss.detach()) == pytest.approx(float(truth.detach()), rel=1e-5)
    fit(made, source, settings(12, accumulate=1, batch_tokens=400), context(tmp_path))
    assert float(made(labelled(rows)).loss.detach()) < 0.5 * float(first.loss.detach())
    moved_V = (made.student.get_output_embeddings().weight - before).abs().sum(1) > 0
    assert moved_V.nonzero()[:, 0].tolist() == words_V.tolist()


# ---- drawing ---------------------------------------------------------------------------------------------------------


def drawn(source, count, world, cursor=START):
    steps = [source.draw(cursor, count, Ranks("ddp", rank, world)) for rank in range(world)]
    return steps, [[batch.trace_ids for batch in step.batches] for step in steps]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_a_step_and_count_all_of_it(world):
    steps, ids = drawn(rows_source(), 6, world)
    _, whole = drawn(rows_source(), 6, 1)
    assert sorted(batch for own in ids for batch in own) == sorted(whole[0])
    assert [step.num_batches for step in steps] == [len(own) for own in ids]
    by_id = {row.id: row for row in two_ranks.rows(12)}
    members = [by_id[one] for batch in whole[0] for one in batch]
    for step in steps:
        assert step.num_supervised == sum(row.num_supervised for row in members)
        assert step.num_tokens == sum(len(row.ids) for row in members)
        assert step.cursor == steps[0].cursor


@pytest.mark.parametrize("world", [1, 2])
def test_a_mix_draws_by_its_shares_and_goes_on_where_it_was(world):
    mixed = MixedSource((rows_source(12), Grown()), (0.75, 0.25), seed=1)
    cursor, from_rows, total = Cursor(), 0, 0
    for _ in range(60):
        steps, ids = drawn(mixed, 4, world, cursor)
        again, same = drawn(mixed, 4, world, Cursor(cursor.epoch, cursor.index, cursor.parts))
        assert same == ids and again[0].cursor == steps[0].cursor
        assert sum(step.num_batches for step in steps) == 4
        assert max(step.num_batches for step in steps) - min(step.num_batches for step in steps) <= 1
        from_rows += sum("grown" not in batch for own in ids for batch in own)
        total += 4
        cursor = steps[0].cursor
    assert 0.65 < from_rows / total < 0.85
    assert mixed.epoch_batches(0) is None
    with pytest.raises(ValueError, match="give one above 0 for each"):
        MixedSource((Grown(),), (0.5, 0.5))


def train_mixed(out, stop=lambda: False):
    made, mixed = student(), MixedSource((rows_source(12), Grown()), (1.0, 1.0), seed=2)
    fit(made, mixed, settings(4, checkpoint_minutes=1e-9), context(out, stop))
    return made


@pytest.mark.slow
def test_a_mix_is_resumed_bit_equal(tmp_path):
    killed("train_mixed", tmp_path / "two")
    whole, resumed = train_mixed(tmp_path / "whole"), train_mixed(tmp_path / "two")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_live_teacher_that_gives_no_numbers_is_told_as_such():
    """Not as a learning rate that is too high."""
    teacher = HfLM.wrap(tiny.build_model("llama"), tiny.build_tokenizer(), name="teacher")
    rows = two_ranks.rows(3)
    with torch.no_grad():
        teacher.model.get_input_embeddings().weight[int(rows[1].ids[0])] = float("nan")
    with pytest.raises(TeacherError, match="the teacher's hidden states are not finite numbers on a batch of the rows"):
        live(teacher, Vocab(384))(rows)


def test_a_thread_makes_the_next_batch_and_its_errors_come_in_turn():
    made, go_on = [], threading.Event()

    def batches():
        for number in range(3):
            made.append((number, threading.current_thread() is threading.main_thread()))
            if number == 1:
                go_on.set()
            if number == 2:
                raise RuntimeError("the third is broken")
            yield number

    ahead = one_ahead(batches())  # type: ignore[arg-type]
    assert next(ahead) == 0 and go_on.wait(5)
    assert next(ahead) == 1
    with pytest.raises(RuntimeError, match="third"):
        next(ahead)
    assert made == [(0, False), (1, False), (2, False)]


def test_batches_one_ahead_are_the_batches():
    source = rows_source()
    _, plainly = drawn(source, 5, 1)
    _, ahead = drawn(replace(source, ahead=True), 5, 1)
    assert plainly == ahead


def test_terms_are_summed_by_name():
    out = LossOut(torch.tensor(2.0), {"ce": torch.tensor(1.0), "extra": torch.tensor(3.0)}, 4)
    sums = _Sums()
    sums.add(out)
    sums.add(out)
    assert sums.means(8, Ranks()) == {"loss": 0.5, "ce": 0.25, "extra": 0.75}
