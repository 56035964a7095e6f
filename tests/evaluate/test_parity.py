"""Parity: the ruler is the definition, in double precision, over whole matrices."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from limbeck.errors import DataError, ExportError, TeacherError
from limbeck.evaluate import parity as module
from limbeck.evaluate import row_scores
from limbeck.evaluate.parity import Sizes, parity
from limbeck.models.hf import HfLM
from limbeck.types import Row
from tests import tiny


@pytest.fixture
def source(tiny_tokenizer):
    return HfLM.wrap(tiny.build_model("llama"), tiny_tokenizer, name="source")


@pytest.fixture
def noisy(tiny_tokenizer):
    model = tiny.build_model("llama")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.02 * torch.randn(parameter.shape, generator=generator))
    return HfLM.wrap(model, tiny_tokenizer, name="noisy")


@pytest.fixture
def rows(tiny_tokenizer):
    found = []
    for number, row in enumerate(tiny.rows(6)):
        ids = np.array(tiny_tokenizer(row["text"])["input_ids"][:40], np.int32)
        found.append(Row(str(number), "heldout", "", row["text"], ids, ((1 + number % 3, len(ids) - number),), ""))
    return found


def judged(source, export, rows, **kwargs):
    return parity(source, export, rows, Sizes(400, 100), text="a few rows", on_progress=lambda _: None, **kwargs)


@pytest.mark.slow
def test_figures_are_those_of_the_definition(source, noisy, rows, monkeypatch):
    kls, same = [], []
    for row in rows:
        ids = torch.from_numpy(row.ids.astype(np.int64))[None]
        with torch.no_grad():
            p_TV, q_TV = (lm.model(ids).logits[0].double().log_softmax(-1) for lm in (source, noisy))
        for start, end in row.spans:
            kls += ((p_TV.exp() * (p_TV - q_TV)).sum(-1))[start - 1 : end - 1].tolist()
            same += (p_TV.argmax(-1) == q_TV.argmax(-1))[start - 1 : end - 1].tolist()
    for chunk in (row_scores.CHUNK_BYTES, 8 * tiny.VOCAB * 3):  # three positions at a time
        monkeypatch.setattr(row_scores, "CHUNK_BYTES", chunk)
        found = judged(source, noisy, rows)
        assert found.kl == pytest.approx(np.mean(kls), rel=1e-4) and found.kl > 1e-4
        assert found.kl_most == pytest.approx(max(kls), rel=1e-3)
        assert found.agreement == pytest.approx(np.mean(same)) and found.agreement < 1
        assert found.positions == len(kls) == sum(row.num_supervised for row in rows)
    assert (found.source_bytes, found.bytes, found.text) == (400, 100, "a few rows")
    assert found.tokens_per_second > 0 and found.source_tokens_per_second > 0


def test_a_model_against_itself(source, rows):
    found = judged(source, source, rows)
    assert (found.kl, found.kl_most, found.agreement, found.greedy_equal) == (0.0, 0.0, 1.0, 1.0)


@pytest.mark.slow
def test_greedy_texts_are_compared_token_by_token(source, noisy, rows):
    with torch.no_grad():
        noisy.model.model.norm.weight.neg_()
    assert judged(source, noisy, rows).greedy_equal < 1


def test_no_more_positions_than_needed_and_long_rows_are_cut(source, rows, monkeypatch):
    monkeypatch.setattr(module, "MOST_POSITIONS", rows[0].num_supervised + 1)
    assert judged(source, source, rows).positions == rows[0].num_supervised + rows[1].num_supervised
    monkeypatch.setattr(module, "LONGEST_ROW", 20)
    monkeypatch.setattr(module, "MOST_POSITIONS", 1)
    assert judged(source, source, rows).positions == 19


def test_rows_longer_than_the_context_are_cut(source, rows):
    long = replace(rows[0], ids=np.tile(rows[0].ids, 20), spans=((1, 20 * len(rows[0].ids)),))
    assert judged(source, source, [long]).positions == 127  # its context is 128


@dataclass(frozen=True)
class Other:
    """A model whose tokens are not the source's."""

    vocab: int
    tokenizer_hash: str


def test_other_tokens_are_refused(source, rows):
    for other in (Other(tiny.VOCAB, "another"), Other(5, source.tokenizer_hash)):
        with pytest.raises(TeacherError, match="the export has other tokens than its source"):
            judged(source, other, rows)


def test_nothing_to_read(source, rows):
    for nothing in ([], [replace(rows[0], spans=())]):
        with pytest.raises(DataError, match="no text to judge the export on"):
            judged(source, source, nothing)


def test_logits_that_are_not_finite(source, noisy, rows):
    with torch.no_grad():
        noisy.model.model.norm.weight[0] = float("nan")
    with pytest.raises(ExportError, match="not finite"):
        judged(source, noisy, rows)


def test_progress_reaches_its_end(source, rows):
    seen = []
    parity(source, source, rows, Sizes(1, 1), text="rows", on_progress=seen.append)
    assert [one.done for one in seen] == sorted(one.done for one in seen)
    assert seen[-1].done == seen[-1].total == sum(row.num_supervised for row in rows)
