"""Whole evaluations against a plain one: full logits of the unpacked models, row by row, in fp64."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from limbeck.errors import DataError, NonFiniteError, TeacherError
from limbeck.evaluate.compare import METRICS, evaluate_models, position_edges
from limbeck.metrics.calibration import ece, reliability
from limbeck.models.hf import HfLM
from limbeck.recipe import Evaluate
from limbeck.types import Trace
from tests import tiny
from tests.evaluate.conftest import perturbed

SMALL = Evaluate(batch_tokens=96)


def ignore(_progress):
    """Nobody is listening."""


def plain(teacher, student, row):
    """Per supervised position of one row: kl, agree, ce, tv, correct, confidence, repeated; by definition, in fp64."""
    ids = torch.from_numpy(row.ids.astype(np.int64))[None]
    positions = [index for start, end in row.spans for index in range(start, end)]
    with torch.no_grad():
        p = torch.softmax(teacher.model(ids).logits[0, :-1].double(), -1)
        q = torch.softmax(student.model(ids).logits[0, :-1].double(), -1)
    out = []
    for index in positions:
        a, b, label = p[index - 1], q[index - 1], int(row.ids[index])
        theirs, top = int(a.argmax()), int(b.argmax())
        kl, tv = float((a * (a / b).log()).sum()), float((a - b).abs().sum()) / 2
        ce = -float(b[label].log())
        repeated = theirs != label and top == theirs
        out.append((kl, top == theirs, ce, tv, top == label, float(b.max()), repeated))
    return np.array(out, dtype=float)


def test_agrees_with_the_plain_evaluation(teacher, students, text_rows, chat_rows):
    rows = [*text_rows[:5], *chat_rows]
    found = evaluate_models(teacher, students, rows, settings=SMALL, on_progress=ignore)
    assert found.models == ["teacher", "student", "twin"]
    assert found.positions_R.tolist() == [row.num_supervised for row in rows]
    for name, lm in {"teacher": teacher, **students}.items():
        want = [plain(teacher, lm, row) for row in rows]
        for column, metric in enumerate(METRICS):
            sums = np.array([values[:, column].sum() for values in want])
            np.testing.assert_allclose(found.sums[name][metric], sums, rtol=2e-4, atol=2e-4, err_msg=f"{name} {metric}")
        every = np.concatenate(want)
        bins = reliability(torch.from_numpy(every[:, 5]), torch.from_numpy(every[:, 4]))
        assert ece(found.reliability[name]) == pytest.approx(ece(bins), abs=1e-4)
        assert found.reliability[name].count_M.sum() == found.num_positions
    assert found.mean("teacher", "kl") == 0.0 and found.mean("teacher", "agreement") == 1.0
    assert found.mean("student", "kl") < found.mean("twin", "kl")
    wrong = sum(1 - plain(teacher, teacher, row)[:, 4].mean() for row in rows[:1]) * rows[0].num_supervised
    assert found.errors_R[0] == wrong


def test_dropout_is_off_whatever_mode_a_model_comes_in(text_rows, tiny_tokenizer):
    """A GPT-2 against itself, as training left it: no KL, and every part is back in its own mode afterwards."""
    model = tiny.build_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    lm = HfLM.wrap(model, tiny_tokenizer, name="dropped")
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    found = evaluate_models(lm, {"student": lm}, text_rows[:3], settings=SMALL, on_progress=ignore)
    assert found.mean("student", "kl") == pytest.approx(0.0, abs=1e-6)
    assert [module.training for module in model.modules()] == modes


def test_nothing_depends_on_the_size_of_batches_and_chunks(teacher, students, text_rows, monkeypatch):
    one = evaluate_models(teacher, students, text_rows, settings=Evaluate(batch_tokens=10_000), on_progress=ignore)
    monkeypatch.setattr("limbeck.evaluate.compare.CHUNK_BYTES", 4 * one.vocab * 17)
    many = evaluate_models(teacher, students, text_rows, settings=SMALL, on_progress=ignore)
    for name in one.models:
        for metric in METRICS:
            np.testing.assert_allclose(one.sums[name][metric], many.sums[name][metric], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(one.by_position.kl[name], many.by_position.kl[name], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(one.by_position.count_M, many.by_position.count_M)


def test_first_choices_are_the_teachers_in_order(teacher, students, text_rows, chat_rows):
    rows = [*text_rows[:7], *chat_rows]
    found = evaluate_models(teacher, students, rows, settings=SMALL, on_progress=ignore)
    for row, top in zip(rows, found.tops, strict=True):
        positions = [index - 1 for start, end in row.spans for index in range(start, end)]
        assert top.tolist() == teacher.logits(row.ids)[positions].argmax(-1).tolist()
    words = evaluate_models(None, students, rows, settings=SMALL, on_progress=ignore)
    assert words.tops[0].tolist() == rows[0].ids[1:].tolist()


def test_bins_by_position_hold_every_position_once(teacher, students, text_rows, chat_rows):
    rows = [*text_rows, *chat_rows]
    found = evaluate_models(teacher, students, rows, settings=SMALL, on_progress=ignore)
    bins = found.by_position
    assert bins.count_M.sum() == found.num_positions
    assert bins.count_M[0] == len(rows)  # the first bin is the first supervised position of every row
    assert bins.edges[-1] == max(row.num_supervised for row in rows) + 1
    assert bins.kl["twin"].sum() == pytest.approx(found.sums["twin"]["kl"].sum())
    first = sum(plain(teacher, students["twin"], row)[0, 0] for row in rows)
    assert bins.kl["twin"][0] == pytest.approx(first, rel=1e-3)


@pytest.mark.parametrize("longest", [1, 2, 3, 15, 16, 17, 511, 100_000])
def test_position_edges(longest):
    edges = position_edges(longest)
    assert edges[0] == 1 and edges[-1] == longest + 1
    assert (np.diff(edges) > 0).all() and len(edges) <= 17


def test_progress_reaches_the_end(teacher, students, text_rows):
    seen = []
    evaluate_models(teacher, students, text_rows, settings=SMALL, on_progress=seen.append)
    assert seen[-1].done == seen[-1].total == sum(len(row.ids) for row in text_rows)
    assert len(seen) > 3 and {progress.stage for progress in seen} == {"evaluate"}
    assert seen[-1].eta == 0 and seen[-1].rate > 0


def test_heads_are_cut_to_the_narrowest(teacher, text_rows):
    """A student padded beyond the teacher's tokens, and one with fewer: both are compared on what all have."""
    narrow = HfLM.wrap(tiny.build_model("qwen2", vocab_size=380), teacher.tokenizer, name="narrow")
    rows = [row for row in text_rows if row.ids.max() < 380]
    assert rows
    found = evaluate_models(teacher, {"student": narrow}, rows, settings=SMALL, on_progress=ignore)
    assert found.vocab == 380
    assert found.notes == ["Heads were cut to the 380 tokens that all models have (wider: teacher 384)."]
    padded = HfLM.wrap(tiny.build_model("qwen2", vocab_size=448), teacher.tokenizer, name="padded")
    found = evaluate_models(teacher, {"student": padded}, rows, settings=SMALL, on_progress=ignore)
    assert found.vocab == 384 and found.notes == []


def test_a_row_beyond_the_narrowest_head_is_an_error(teacher, text_rows):
    narrow = HfLM.wrap(tiny.build_model("qwen2", vocab_size=200), teacher.tokenizer, name="narrow")
    with pytest.raises(TeacherError, match="narrowest head has 200 tokens"):
        evaluate_models(teacher, {"student": narrow}, text_rows, settings=SMALL, on_progress=ignore)


def test_another_tokenizer_is_refused(teacher, students, text_rows):
    other = replace(students["student"], tokenizer_hash="0123456789abcdef")
    with pytest.raises(TeacherError, match="another tokenizer"):
        evaluate_models(teacher, {"student": other}, text_rows, settings=SMALL, on_progress=ignore)


def test_no_rows(teacher, students, text_rows):
    with pytest.raises(DataError, match="no held-out rows"):
        evaluate_models(teacher, students, [], settings=SMALL, on_progress=ignore)
    empty = replace(text_rows[0], spans=())
    with pytest.raises(DataError, match="no held-out rows"):
        evaluate_models(teacher, students, [empty], settings=SMALL, on_progress=ignore)


def test_a_broken_model_is_named(teacher, text_rows):
    broken = perturbed(teacher, 0.0, 0, "broken")
    broken.model.get_output_embeddings().weight.data[7] = float("nan")
    with pytest.raises(NonFiniteError, match="the twin's logits are not finite"):
        evaluate_models(teacher, {"twin": broken}, text_rows, settings=SMALL, on_progress=ignore)


def test_replies_to_one_prompt_are_one_cluster(teacher, students, text_rows):
    traces = [
        Trace(f"t{n}", f"row{n // 2}", "heldout", "", row.text, row.ids, row.spans, "lm", "tok", "hash")
        for n, row in enumerate(text_rows[:4])
    ]
    found = evaluate_models(teacher, students, traces, settings=SMALL, on_progress=ignore)
    assert found.clusters == ["row0", "row0", "row1", "row1"] and found.ids == ["t0", "t1", "t2", "t3"]
