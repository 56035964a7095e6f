"""Reliability bins and ECE against the definition, bin by bin."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.metrics.calibration import ece, merge, reliability


def oracle(confidence, correct, bins):
    """Guo et al., eq. 3, from lists: bin m is ((m - 1) / bins, m / bins], 0 goes to the first."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = [i for i, c in enumerate(confidence) if max(math.ceil(c * bins), 1) == m]
        if inside:
            gap = sum(correct[i] for i in inside) - sum(confidence[i] for i in inside)
            total += abs(gap) / len(confidence)
    return total


@given(
    pairs=st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), max_size=60),
    bins=st.integers(1, 20),
    cut=st.integers(0, 60),
)
@settings(max_examples=100, deadline=None)
def test_agrees_with_definition_and_adds_up(pairs, bins, cut):
    confidence = torch.tensor([c for c, _ in pairs], dtype=torch.float32)
    correct = torch.tensor([k for _, k in pairs], dtype=torch.bool)
    whole = reliability(confidence, correct, bins)
    parts = merge(
        reliability(confidence[:cut], correct[:cut], bins), reliability(confidence[cut:], correct[cut:], bins)
    )
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert whole.count_M.sum() == len(pairs) and len(whole.count_M) == bins
    if pairs:
        assert ece(whole) == pytest.approx(oracle(confidence.tolist(), correct.tolist(), bins), abs=1e-9)


def test_perfectly_calibrated_and_overconfident():
    confidence = torch.full((1000,), 0.8)
    correct = torch.arange(1000) < 800
    assert ece(reliability(confidence, correct)) == pytest.approx(0.0, abs=1e-6)
    assert ece(reliability(torch.ones(1000), correct)) == pytest.approx(0.2)


def test_edges():
    assert ece(reliability(torch.zeros(0), torch.zeros(0))) == 0.0
    bins = reliability(torch.tensor([0.0, 0.5, 1.0, 1.0 + 1e-6]), torch.ones(4), 2)
    assert bins.count_M.tolist() == [2, 2]
    with pytest.raises(ValueError, match="at least 1"):
        reliability(torch.zeros(1), torch.zeros(1), 0)
