"""Selection of supports: mass is conserved, and with draws the expectation is the teacher exactly."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.losses.support import BLOCK, SupportSpec, join, select, split

SPECS = [SupportSpec(5, 0), SupportSpec(0, 12), SupportSpec(5, 12, 0.01)]


def dense(support, vocab):
    """The target that a support stands for, as full distributions (the tail of a top-k spread as NaN-free zero)."""
    rows = len(support.tail_n)
    out = torch.zeros(rows, vocab, dtype=torch.float64)
    out.scatter_add_(1, support.head_ids_nH.clamp_min(0), support.head_p_nH.double())
    if len(support.draw_rows_Q):
        total = torch.zeros(rows, dtype=torch.float64).index_add_(
            0, support.draw_rows_Q, support.draw_counts_Q.double()
        )
        share = support.tail_n.double()[support.draw_rows_Q] * support.draw_counts_Q / total[support.draw_rows_Q]
        out.index_put_((support.draw_rows_Q, support.draw_ids_Q), share, accumulate=True)
    return out


@given(
    spec=st.sampled_from(SPECS),
    rows=st.integers(1, 6),
    vocab=st.sampled_from([1, 3, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7]),
    temperature=st.sampled_from([0.7, 1.0, 3.0]),
    size=st.sampled_from([0.0, 2.0, 40.0]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=120, deadline=None)
def test_mass_is_conserved(spec, rows, vocab, temperature, size, seed):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, vocab, generator=g) * size
    p = torch.softmax(z.double() / temperature, -1)
    got = select(z.clone(), spec, temperature, g)
    head = got.head_p_nH.double().sum(1)
    torch.testing.assert_close(head + got.tail_n.double(), torch.ones(rows).double(), rtol=1e-5, atol=1e-5)
    entropy = -torch.special.xlogy(p, p).sum(1)
    if spec.draws:
        torch.testing.assert_close(got.entropy_n.double(), entropy, rtol=1e-4, atol=1e-4)
    valid = got.head_ids_nH >= 0
    exact = p.gather(1, got.head_ids_nH.clamp_min(0)) if spec.head else p[:, :0]
    torch.testing.assert_close(got.head_p_nH.double(), exact * valid, rtol=1e-4, atol=1e-6)
    # Every drawn token has mass, and none of them is in the head.
    assert (p[got.draw_rows_Q, got.draw_ids_Q] > 0).all()
    for row, token in zip(got.draw_rows_Q.tolist(), got.draw_ids_Q.tolist(), strict=True):
        assert token not in got.head_ids_nH[row].tolist()
    if spec.draws:
        torch.testing.assert_close(dense(got, vocab).sum(1), torch.ones(rows).double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", [SupportSpec(0, 1), *SPECS[1:]])
@pytest.mark.parametrize("vocab", [1, 2, 5, 50, 2 * BLOCK + 3])
def test_expectation_is_exact(spec, vocab, monkeypatch):
    """Systematic draws depend on one number u, and change only where a point crosses a token's edge: the target in each
    interval between such u, times its length, adds up to the teacher."""
    torch.manual_seed(0)
    z = torch.randn(1, vocab) * 2
    p = torch.softmax(z.double(), -1)
    kept = select(z.clone(), spec, 1.0, torch.Generator())
    tail = p.clone()
    tail.scatter_(1, kept.head_ids_nH.clamp_min(0), 0.0) if spec.head else None
    draws = int(torch.zeros(1).index_add_(0, kept.draw_rows_Q, kept.draw_counts_Q.float()))
    edges = (tail.cumsum(1) / tail.sum() * draws)[0] % 1.0 if draws else torch.zeros(0).double()
    cuts = torch.cat([torch.tensor([0.0, 1.0]).double(), edges]).unique()
    middle, length = (cuts[1:] + cuts[:-1]) / 2, cuts.diff()
    monkeypatch.setattr(torch, "rand", lambda num, **_: middle[:num])
    got = select(z.expand(len(middle), -1).clone(), spec, 1.0, torch.Generator())
    torch.testing.assert_close(length @ dense(got, vocab), p[0], rtol=0, atol=1e-5)


def test_variance_is_below_independent_draws():
    torch.manual_seed(0)
    z = (torch.randn(1, 400) * 2).expand(3000, -1)
    p = torch.softmax(z[:1].double(), -1)
    systematic = dense(select(z.clone(), SupportSpec(0, 12), 1.0, torch.Generator().manual_seed(1)), 400)
    independent = p * (1 - p) / 12
    assert ((systematic - p) ** 2).mean(0).sum() < independent.sum()


def test_certain_positions_store_little():
    z = torch.full((1, 1000), -20.0)
    z[0, 7] = 20.0
    got = select(z, SupportSpec(12, 32, 0.004), 1.0, torch.Generator().manual_seed(0))
    assert (got.head_ids_nH >= 0).sum() == 1 and got.draw_counts_Q.sum() <= 1


def test_join_and_split_are_inverse():
    g = torch.Generator().manual_seed(0)
    parts = [select(torch.randn(n, 300, generator=g), SPECS[2], 1.0, g) for n in (3, 1, 5)]
    for part, again in zip(parts, split(join(parts), [3, 1, 5]), strict=True):
        for name in vars(part):
            assert torch.equal(getattr(part, name), getattr(again, name)), name


def test_top_one_is_kept_whatever_min_prob():
    got = select(torch.zeros(1, 1000), SupportSpec(4, 8, 0.5), 1.0, torch.Generator().manual_seed(0))
    assert (got.head_ids_nH >= 0).sum() == 1
    assert got.tail_n.item() == pytest.approx(1 - 1 / 1000, abs=1e-5)
    assert math.isclose(got.entropy_n.item(), math.log(1000), abs_tol=1e-3)
