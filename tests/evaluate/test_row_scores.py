"""One pass over a row: the ruler is torch's own cross-entropy and the definition of KL, over whole matrices."""

import numpy as np
import pytest
import torch

from limbeck.evaluate import row_scores as module
from limbeck.evaluate.row_scores import row_scores
from limbeck.models.hf import HfLM
from tests import tiny

IDS = np.arange(3, 33, dtype=np.int32)
SPANS = ((1, 9), (15, 30))
PLACES = [*range(1, 9), *range(15, 30)]


@pytest.fixture
def pair(tiny_tokenizer):
    return [HfLM.wrap(tiny.build_model("llama", seed=seed), tiny_tokenizer, name=str(seed)) for seed in (0, 1)]


@pytest.mark.parametrize("chunk", [module.CHUNK_BYTES, 8 * tiny.VOCAB * 4])  # all at once; four positions at a time
def test_scores_are_those_of_the_definition(pair, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    lm, source = pair
    q_nV, p_nV = (each.logits(IDS)[np.array(PLACES) - 1].double().log_softmax(-1) for each in pair)
    labels_n = torch.from_numpy(IDS[PLACES]).long()
    own, against = row_scores(lm, IDS.tolist(), SPANS), row_scores(lm, IDS, SPANS, source=source)
    for found in (own, against):
        assert found.ce_N.dtype == torch.float64 and len(found.ce_N) == len(PLACES)
        assert torch.allclose(found.ce_N, torch.nn.functional.nll_loss(q_nV, labels_n, reduction="none"), rtol=1e-12)
        assert torch.equal(found.correct_N, q_nV.argmax(-1) == labels_n)
        assert torch.equal(found.top_N, q_nV.argmax(-1))
    assert not own.kl_N.any() and own.agree_N.all()
    assert torch.allclose(against.kl_N, (p_nV.exp() * (p_nV - q_nV)).sum(-1), rtol=1e-9)
    assert torch.equal(against.agree_N, p_nV.argmax(-1) == q_nV.argmax(-1)) and not against.agree_N.all()
