"""Scores per position against formulas in fp64, and the statements of fidelity that hold whatever the models."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.metrics.fidelity import own_scores, position_scores, reference, score_against


def oracle(z, u, labels):
    """By definition, in fp64, one position at a time."""
    p, q = torch.softmax(u.double(), -1), torch.softmax(z.double(), -1)
    rows = range(len(labels))
    kl = [sum(a * math.log(a / b) for a, b in zip(p[i].tolist(), q[i].tolist(), strict=True) if a > 0) for i in rows]
    tv = [sum(abs(a - b) for a, b in zip(p[i].tolist(), q[i].tolist(), strict=True)) / 2 for i in rows]
    ce = [-math.log(q[i, label]) for i, label in enumerate(labels.tolist())]
    entropy = [-sum(a * math.log(a) for a in p[i].tolist() if a > 0) for i in rows]
    return {"kl_N": kl, "tv_N": tv, "ce_N": ce, "confidence_N": q.amax(-1).tolist()}, entropy


@given(
    num=st.integers(0, 4),
    vocab=st.integers(1, 50),
    size=st.sampled_from([0.01, 1.0, 6.0]),
    gap=st.sampled_from([0.001, 0.3, 2.0]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_agrees_with_fp64(num, vocab, size, gap, seed):
    draw = torch.Generator().manual_seed(seed)
    u = torch.randn(num, vocab, generator=draw) * size
    z = u + torch.randn(num, vocab, generator=draw) * gap
    labels = torch.randint(vocab, (num,), generator=draw)
    found, (want, entropy) = position_scores(z, u, labels), oracle(z, u, labels)
    for name, values in want.items():
        expected = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(getattr(found, name).double(), expected, rtol=1e-4, atol=2e-6, msg=name)
    torch.testing.assert_close(reference(u).entropy_N.double(), torch.tensor(entropy).double(), rtol=1e-4, atol=2e-6)
    assert torch.equal(found.agree_N, z.argmax(-1) == u.argmax(-1))
    assert torch.equal(found.correct_N, z.argmax(-1) == labels)
    assert (found.kl_N >= 0).all() and (found.tv_N <= 1).all()
    # Pinsker: tv <= sqrt(kl / 2); a KL below 1e-6 is rounding.
    assert (found.tv_N.double() <= ((found.kl_N.double() + 1e-6) / 2).sqrt() + 1e-4).all()


def test_direction_is_teacher_to_student():
    teacher, student = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    want = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert position_scores(student, teacher, torch.tensor([0])).kl_N.item() == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_teacher_against_itself(dtype):
    """KL exactly 0 and agreement 1, also where half precision makes the most probable tokens tie."""
    logits = (torch.randn(64, 500) * 3).to(dtype)
    labels = torch.randint(500, (64,))
    found, own = position_scores(logits, logits, labels), own_scores(reference(logits), labels)
    assert found.kl_N.max() == 0 and found.tv_N.max() == 0 and found.agree_N.all()
    for name in own._fields:
        torch.testing.assert_close(getattr(found, name), getattr(own, name), msg=name)


def test_small_divergence_does_not_drown_in_rounding():
    """KL of 5e-5 between distributions over 50,000 tokens, to 1e-6: it is not the difference of two large sums."""
    u = torch.randn(4, 50_000) * 4
    z = u + torch.randn(4, 50_000) * 1e-2
    labels = torch.zeros(4, dtype=torch.int64)
    exact = position_scores(z.double(), u.double(), labels).kl_N
    assert 1e-5 < exact.max() < 1e-4
    torch.testing.assert_close(position_scores(z, u, labels).kl_N.double(), exact, rtol=0, atol=1e-6)


def test_inputs_are_left_alone_and_shared_reference_gives_the_same():
    z, u, labels = torch.randn(5, 30), torch.randn(5, 30), torch.arange(5)
    before = z.clone(), u.clone()
    theirs = reference(u)
    first, second = score_against(z, theirs, labels), score_against(z, theirs, labels)
    assert torch.equal(z, before[0]) and torch.equal(u, before[1])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, position_scores(z, u, labels), strict=True))


def test_different_vocabularies_are_refused():
    with pytest.raises(ValueError, match="same vocabulary"):
        position_scores(torch.randn(2, 8), torch.randn(2, 9), torch.zeros(2, dtype=torch.int64))
