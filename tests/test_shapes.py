"""The checker of shapes finds what it is there to find, and is installed."""

import pytest
import torch

from limbeck.losses import divergence
from limbeck.types import Head, LiveTarget
from tests.shapes import ShapeError, letters


def test_reads_shapes_from_names():
    assert letters("logits_NV") == "NV"
    assert letters("hidden_nD") == "nD"
    assert [letters(name) for name in ("temperature", "min_prob", "num", "weights")] == [None] * 4


def test_a_function_refuses_rows_that_do_not_match():
    logp = torch.zeros(4, 7)
    with pytest.raises(ShapeError, match="N = 1, another tensor has N = 4"):
        divergence("forward_kl", logp, logp, labels_N=torch.zeros(1))
    with pytest.raises(ShapeError, match="2 dimensions"):
        divergence("forward_kl", logp[0], logp[0])
    assert divergence("forward_kl", logp, logp).shape == (4,)


def test_a_dataclass_refuses_fields_that_do_not_match():
    with pytest.raises(ShapeError, match="V = 8"):
        Head(torch.zeros(7, 5), torch.zeros(8))
    with pytest.raises(ShapeError, match="hidden_ND"):
        LiveTarget(torch.zeros(5), torch.zeros(7, 5))
