"""The checker of shapes finds what it is there to find, and is installed."""

import pytest
import torch

from limbeck.losses import on_cells
from limbeck.types import Head, LiveTarget
from tests.shapes import ShapeError, letters


def test_reads_shapes_from_names():
    assert letters("logits_NV") == "NV"
    assert letters("hidden_nD") == "nD"
    assert [letters(name) for name in ("temperature", "min_prob", "num", "weights")] == [None] * 4


def test_a_function_refuses_rows_that_do_not_match():
    logp, logq = torch.zeros(4, 7), torch.zeros(1, 7)  # torch would broadcast
    with pytest.raises(ShapeError, match="N = 1, another tensor has N = 4"):
        on_cells("forward_kl", logp, logq)
    with pytest.raises(ShapeError, match="2 dimensions"):
        on_cells("forward_kl", logp[0], logq[0])
    assert on_cells("forward_kl", logp, logp).value_N.shape == (4,)


def test_a_dataclass_refuses_fields_that_do_not_match():
    with pytest.raises(ShapeError, match="V = 8"):
        Head(torch.zeros(7, 5), torch.zeros(8))
    with pytest.raises(ShapeError, match="hidden_ND"):
        LiveTarget(torch.zeros(5), Head(torch.zeros(7, 5)))
