"""The self-test passes on every family, and names the statement for each bug that is planted in the code it tests."""

from __future__ import annotations

import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.cli.tables import statements
from limbeck.errors import DataError, RecipeError
from limbeck.label import local
from limbeck.losses import chunked, divergences, rows
from limbeck.losses.divergences import Cells
from limbeck.models import hf
from limbeck.models.hf import HfLM
from limbeck.selftest import run as selftest
from limbeck.selftest.pair import Measure
from limbeck.selftest.run import STATEMENTS, CheckOutcome, SelfTest, SelfTestChoice, run_selftest
from limbeck.store import TraceStore, reader
from limbeck.text import packing
from limbeck.train import distiller, sources
from tests import tiny

QUICK = SelfTestChoice(divergence="forward_kl")


@pytest.fixture(scope="module")
def pair_of(tiny_folder):
    def folders(family: str = "llama", **changes) -> tuple[str, str]:
        return str(tiny_folder(family, **changes)), str(tiny_folder(family, seed=1, **changes))

    return folders


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [family if family == "gemma2" else pytest.param(family, marks=pytest.mark.slow) for family in tiny.FAMILIES],
)
def test_every_family_passes(family, pair_of):
    seen = []
    found = run_selftest(*pair_of(family), on_progress=seen.append)
    assert found.failed == [], _told(found)
    assert all(finding.passed for finding in found.findings)
    assert [finding.name for finding in found.findings] == [statement.name for statement in STATEMENTS]
    assert (seen[-1].done, seen[-1].total) == (len(STATEMENTS), len(STATEMENTS))


def _told(found: SelfTest) -> str:
    lines = [f"{one.name}: {one.raised} {[m for m in one.measures if not m.passed]}" for one in found.findings]
    return "\n".join(line for line, one in zip(lines, found.findings, strict=True) if one.passed is False)


# ---- planted bugs ----------------------------------------------------------------------------------------------------


def _open_anyway(patch):
    """No model would be opened with this bug: packed hidden rows are compared with its own logits."""
    patch.setattr(hf, "refuse_unsupported", lambda _model: None)


def wrong_shift_of_a_batch(patch):
    """Hidden row j is taken to predict token j."""
    _open_anyway(patch)
    batch = packing.Batch

    def made(**parts):
        return batch(**{**parts, "rows_N": (parts["rows_N"] + 1).clamp_max(len(parts["ids_T"]) - 1)})

    patch.setattr(packing, "Batch", made)


def wrong_shift_of_the_student(patch):
    hidden = distiller.packed_hidden
    patch.setattr(distiller, "packed_hidden", lambda model, batch: hidden(model, batch).roll(1, 0))


def wrong_shift_of_the_teacher(patch):
    hidden = HfLM.hidden
    patch.setattr(HfLM, "hidden", lambda self, batch: hidden(self, batch).roll(1, 0))


def missing_t_squared(patch):
    live = chunked.live_rows

    def live_rows(z_nV, u_nV, terms, labels_n):
        out = live(z_nV, u_nV, terms, labels_n)
        z_nV.div_(terms.temperature**2)
        return out._replace(loss_n=out.loss_n / terms.temperature**2)

    patch.setattr(chunked, "live_rows", live_rows)


def one_sided_temperature(patch):
    live = chunked.live_rows

    def live_rows(z_nV, u_nV, terms, labels_n):
        return live(z_nV, u_nV * (1 if terms.temperature == 1 else terms.temperature), terms, labels_n)

    patch.setattr(chunked, "live_rows", live_rows)


def _stored(patch, change):
    dists = TraceStore.dists
    patch.setattr(TraceStore, "dists", lambda self, traces: change(dists(self, traces)))


def renormalised_top_k(patch):
    def change(dist):
        logp_NK = dist.logp_NK - dist.logp_NK.logsumexp(1, keepdim=True)
        return replace(dist, logp_NK=logp_NK, tail_N=torch.full_like(dist.tail_N, -math.inf))

    _stored(patch, change)


def padded_positions_counted(patch):
    patch.setattr(sources.EpochPlan, "positions", lambda self, batch: sum(self.lengths[index] for index in batch))


def padded_positions_trained(patch):
    patch.setattr(packing, "label_positions", lambda item: torch.arange(1, len(item.ids)).numpy())


def mean_of_means(patch):
    forward = distiller.Distiller.forward

    def mean(self, batch):
        out = forward(self, batch)
        return out._replace(loss=out.loss / out.num)

    patch.setattr(distiller.Distiller, "forward", mean)
    patch.setattr(sources.EpochPlan, "positions", lambda _self, _batch: 1)


def swapped_kl(patch):
    table = divergences.DIVERGENCES
    forward, reverse = table["forward_kl"], table["reverse_kl"]
    patch.setitem(table, "forward_kl", replace(forward, on_cells=reverse.on_cells))
    patch.setitem(table, "reverse_kl", replace(reverse, on_cells=forward.on_cells))


def teacher_in_train_mode(patch):
    wrap = HfLM.wrap

    def trained(model, tokenizer, *, name):
        lm = wrap(model, tokenizer, name=name)
        lm.model.train()
        return lm

    patch.setattr(HfLM, "wrap", trained)


def teacher_dropped(patch):
    live = chunked.live_rows
    patch.setattr(chunked, "live_rows", lambda z_nV, u_nV, *rest: live(z_nV, torch.zeros_like(u_nV), *rest))


def stale_target_accepted(patch):
    patch.setattr(reader, "check_context", lambda _item, _hash: None)


def stale_target_of_another_row(patch):
    def change(dist):
        return replace(dist, ids_NK=dist.ids_NK.roll(7, 0), logp_NK=dist.logp_NK.roll(7, 0), tail_N=dist.tail_N.roll(7))

    _stored(patch, change)


def detached_head(patch):
    head_of = distiller.head_of
    patch.setattr(
        distiller, "head_of", lambda model: replace(head_of(model), weight_VD=head_of(model).weight_VD.detach())
    )


def bf16_log_softmax(patch):
    softmax_, of_logits = rows.softmax_, Cells.of_logits

    def halved_(z_nV):
        half_nV = z_nV.bfloat16()
        normaliser_n = softmax_(half_nV)
        z_nV.copy_(half_nV)
        return normaliser_n.to(z_nV.dtype)

    def halved(z_NC):
        return Cells(*(part.to(z_NC.dtype) for part in of_logits(z_NC.bfloat16())))

    patch.setattr(rows, "softmax_", halved_)
    patch.setattr(Cells, "of_logits", halved)


def wrong_gradient_live(patch):
    live = chunked.live_rows

    def live_rows(z_nV, *rest):
        out = live(z_nV, *rest)
        z_nV.mul_(1.01)
        return out

    patch.setattr(chunked, "live_rows", live_rows)


def wrong_gradient_stored(patch):
    sparse = chunked.sparse_rows

    def sparse_rows(z_nV, *rest):
        out = sparse(z_nV, *rest)
        z_nV.mul_(1.01)
        return out

    patch.setattr(chunked, "sparse_rows", sparse_rows)


def teacher_a_little_colder(patch):
    live = chunked.live_rows
    patch.setattr(chunked, "live_rows", lambda z_nV, u_nV, *rest: live(z_nV, 1.1 * u_nV, *rest))


def tail_dropped_by_the_loss(patch):
    sparse = chunked.sparse_rows

    def sparse_rows(z_nV, target, *rest):
        logp_NK = target.logp_NK - target.logp_NK.logsumexp(1, keepdim=True)
        cut = replace(target, logp_NK=logp_NK, tail_N=torch.full_like(target.tail_N, -math.inf))
        return sparse(z_nV, cut, *rest)

    patch.setattr(chunked, "sparse_rows", sparse_rows)


def documents_see_each_other(patch):
    _open_anyway(patch)
    batch = packing.Batch
    patch.setattr(packing, "Batch", lambda **parts: batch(**{**parts, "lengths": (sum(parts["lengths"]),)}))


def biased_draws(patch):
    def change(dist):
        if dist.entropy_N is None:
            return dist
        logp_NK = dist.logp_NK - (dist.ids_NK < tiny.VOCAB // 2).float()
        return replace(dist, logp_NK=logp_NK - logp_NK.logsumexp(1, keepdim=True))

    _stored(patch, change)


def stored_after_sampling(patch):
    score = local.score
    patch.setattr(local, "score", lambda teacher, traces, spec, _t, *rest: score(teacher, traces, spec, 0.7, *rest))


BUGS = [
    (wrong_shift_of_a_batch, "shift"),
    (wrong_shift_of_the_student, "shift"),
    (wrong_shift_of_the_teacher, "shift"),
    (missing_t_squared, "temperature"),
    (one_sided_temperature, "temperature"),
    (renormalised_top_k, "kept mass"),
    (padded_positions_counted, "masked positions"),
    (padded_positions_trained, "masked positions"),
    (mean_of_means, "split"),
    (swapped_kl, "direction of KL"),
    (teacher_in_train_mode, "teacher untouched"),
    (teacher_dropped, "teacher matters"),
    (stale_target_accepted, "stored targets"),
    (stale_target_of_another_row, "stored targets"),
    (detached_head, "head"),
    (bf16_log_softmax, "precision"),
    (wrong_gradient_live, "fused = plain, live"),
    (wrong_gradient_stored, "fused = plain, stored"),
    (teacher_a_little_colder, "self-distillation"),
    (tail_dropped_by_the_loss, "sparse bound"),
    (documents_see_each_other, "packing and padding"),
    (biased_draws, "unbiased draws"),
    (stored_after_sampling, "raw probabilities"),
]


@pytest.mark.parametrize(("bug", "statement"), BUGS, ids=[bug.__name__ for bug, _ in BUGS])
def test_a_planted_bug_is_named(bug, statement, pair_of, monkeypatch):
    folders = pair_of("gpt2")  # it has dropout
    bug(monkeypatch)
    monkeypatch.setattr(selftest, "STATEMENTS", tuple(one for one in STATEMENTS if one.name == statement))
    found = run_selftest(*folders, choice=QUICK)
    assert statement in found.failed
    named = next(finding for finding in found.findings if finding.name == statement)
    assert named.raised is None, "measured, not stumbled over"


@pytest.mark.slow
def test_without_a_bug_nothing_is_named(pair_of):
    assert run_selftest(*pair_of("gpt2"), choice=QUICK).failed == []


def test_every_statement_can_fail():
    named = {statement for _, statement in BUGS} | {"tokenizer"}  # which has a test of its own
    assert named == {statement.name for statement in STATEMENTS}


# ---- other pairs, other rows -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [
        SelfTestChoice(dtype="bfloat16"),
        pytest.param(SelfTestChoice(divergence="mse"), marks=pytest.mark.slow),
        pytest.param(SelfTestChoice(divergence="decoupled"), marks=pytest.mark.slow),
    ],
)
def test_choices(choice, pair_of):
    found = run_selftest(*pair_of(), choice=choice)
    assert found.failed == [], _told(found)


@pytest.mark.slow
def test_one_model_is_tested_against_itself_shaken(tiny_llama, tmp_path):
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    for student in (None, str(copy)):
        found = run_selftest(str(tiny_llama), student, choice=QUICK)
        assert found.failed == [], _told(found)
        assert "shaken by 5%" in found.facts[1]


@pytest.mark.slow
def test_rows_of_the_user(pair_of, text_jsonl, chat_jsonl):
    for file in (text_jsonl, chat_jsonl):
        found = run_selftest(*pair_of("qwen2"), choice=replace(QUICK, rows=file))
        assert found.failed == [], _told(found)
        assert found.facts[2].startswith("6 rows")


def test_rows_that_cannot_be_used(pair_of, tmp_path):
    (tmp_path / "one.txt").write_text("Only one row.")
    with pytest.raises(DataError, match="1 usable rows"):
        run_selftest(*pair_of(), choice=SelfTestChoice(rows=tmp_path / "one.txt"))


def test_unknown_divergence(pair_of):
    with pytest.raises(RecipeError, match=r"no divergence 'kl'; allowed are forward_kl"):
        run_selftest(*pair_of(), choice=SelfTestChoice(divergence="kl"))


def test_another_tokenizer_is_named_and_what_needs_one_is_not_run(tiny_llama, tmp_path):
    tiny.build_model("llama", seed=3, vocab_size=300).save_pretrained(tmp_path)
    tiny.build_tokenizer(300).save_pretrained(tmp_path)
    found = run_selftest(str(tiny_llama), str(tmp_path), choice=QUICK)
    assert found.failed == ["tokenizer"]
    by_name = {finding.name: finding for finding in found.findings}
    assert by_name["split"].passed is None
    assert by_name["split"].skipped == "the two have different tokenizers"
    assert by_name["unbiased draws"].passed
    measures = {measure.what: measure.value for measure in by_name["tokenizer"].measures}
    assert 0 < measures["student tokens that are one token of the teacher, all"] < 1
    assert {what.rpartition(", ")[2] for what in measures if "one token" in what} == {
        "all",
        "words",
        "other",
        "with digits",
    }


def test_a_narrow_head_is_named(tiny_llama, tmp_path):
    tiny.build_model("llama", seed=3, vocab_size=380).save_pretrained(tmp_path)
    tiny.build_tokenizer().save_pretrained(tmp_path)
    found = run_selftest(str(tiny_llama), str(tmp_path), choice=QUICK)
    assert found.failed == ["tokenizer"]
    assert found.findings[-3].skipped == "the student's head has 380 rows for 384 tokens"


@pytest.mark.slow
def test_padded_heads_are_cut(tiny_llama, tmp_path):
    tiny.build_model("llama", seed=3, vocab_size=448).save_pretrained(tmp_path)
    tiny.build_tokenizer().save_pretrained(tmp_path)
    for pair in ((tiny_llama, tmp_path), (tmp_path, tiny_llama)):
        found = run_selftest(*map(str, pair), choice=QUICK)
        assert found.failed == [], _told(found)
        assert "384 tokens in the vocabulary" in found.facts[2]


# ---- what is shown ---------------------------------------------------------------------------------------------------

FOUND = SelfTest(
    ("teacher: t",),
    (
        CheckOutcome("one", "holds", (1,), (Measure("error", 1e-7, 1e-5), Measure("change", 0.5, low=1e-3))),
        CheckOutcome("two", "fails", (2,), (Measure("error", math.nan, 1e-5), Measure("count", 3, 0))),
        CheckOutcome("three", "raised", (3,), raised="ValueError: \x1b[2J"),
        CheckOutcome("four", "not run", (4,), skipped="two tokenizers"),
    ),
    61.0,
)


def test_table():
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(statements(FOUND))
    text = console.export_text()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "one pass error 1e-07 at most 1e-05" in lines
    assert "change 0.5 at least 0.001" in lines
    assert "two FAIL error nan at most 1e-05" in lines
    assert "three FAIL it raised ValueError: \\x1b[2J" in lines
    assert "four not run two tokenizers" in lines
    assert lines[-1] == "1 statements hold, 2 do not, 1 could not run (1 min 01 s)"


def test_command(monkeypatch, tmp_path: Path):
    asked = []

    def run(teacher, student, *, choice, on_progress):
        asked.append((teacher, student, choice))
        return FOUND

    monkeypatch.setattr(selftest, "run_selftest", run)
    runner = CliRunner()
    out = runner.invoke(
        app.app, ["selftest", "--teacher", "a", "--student", "b", "--divergence", "jsd", "--dtype", "auto"]
    )
    assert asked == [("a", "b", SelfTestChoice(divergence="jsd", dtype="auto"))]
    assert out.exit_code == 1
    assert out.stderr == "error: these statements do not hold: two, three\n"
    told = json.loads(runner.invoke(app.app, ["selftest", "--teacher", "a", "--json"]).stdout)
    assert told["failed"] == ["two", "three"]
    assert told["findings"][1]["measures"][0] == {
        "what": "error",
        "value": None,
        "high": 1e-5,
        "low": None,
        "passed": False,
    }
    assert runner.invoke(app.app, ["selftest"]).exit_code == 2
    assert runner.invoke(app.app, ["selftest", "--teacher", "a", "--dtype", "int8"]).exit_code == 2
