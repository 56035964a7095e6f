"""Codec: sets of ids exactly, sums of 1, and rounding that does not shift the mean, by enumeration."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.losses import fused_distill_loss
from limbeck.losses.support import Support, SupportSpec, select
from limbeck.store.codec import LEVELS, Codec, quantise
from limbeck.types import LiveTarget

HASH = "0123456789abcdef"
NONE_Q = torch.zeros(0, dtype=torch.int64)


def read(codec, supports, labels, seed=0):
    rounding = np.random.default_rng(seed)
    records = [codec.encode(s, g, HASH, rounding) for s, g in zip(supports, labels, strict=True)]
    return codec.decode([(np.frombuffer(r, np.uint8), g) for r, g in zip(records, labels, strict=True)])


def labels_for(z, generator):
    """Ground truth that is now the most probable token, now any."""
    any_n = torch.randint(0, z.shape[1], (len(z),), generator=generator)
    return torch.where(torch.rand(len(z), generator=generator) < 0.5, z.argmax(1), any_n).numpy()


@given(
    spec=st.sampled_from([SupportSpec(6, 0), SupportSpec(0, 1), SupportSpec(0, 20), SupportSpec(6, 20, 0.01)]),
    vocab=st.sampled_from([1, 2, 5, 300, 49152, 262144]),
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    size=st.sampled_from([0.0, 3.0, 30.0, 1000.0]),
    infinite=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_decoded_distributions_are_those_selected(spec, vocab, sizes, size, infinite, seed):
    g = torch.Generator().manual_seed(seed)
    codec = Codec(vocab, min(spec.head, vocab), spec.draws)
    supports, labels = [], []
    for n in sizes:
        z = torch.randn(n, vocab, generator=g) * size
        if infinite:
            z[:, vocab // 2 + 1 :] = -torch.inf
        labels.append(labels_for(z, g))
        supports.append(select(z, spec, 1.0, g))
    dist = read(codec, supports, labels, seed)
    total = dist.logp_NK.double().exp().sum(1) + dist.tail_N.double().exp()
    torch.testing.assert_close(total, torch.ones(sum(sizes)).double(), rtol=1e-5, atol=1e-5)
    assert (dist.logp_NK[dist.ids_NK < 0] == -torch.inf).all()
    assert (dist.entropy_N is not None) == bool(spec.draws)
    row = 0
    for support in supports:
        for n in range(len(support.tail_n)):
            head = {i: p for i, p in zip(support.head_ids_nH[n].tolist(), support.head_p_nH[n].tolist(), strict=True)}
            head.pop(-1, None)
            mine = support.draw_rows_Q == n
            drawn = dict(zip(support.draw_ids_Q[mine].tolist(), support.draw_counts_Q[mine].tolist(), strict=True))
            ids = [i for i in dist.ids_NK[row].tolist() if i >= 0]
            assert sorted(ids) == sorted([*head, *drawn])
            p = dict(zip(ids, dist.logp_NK[row, : len(ids)].exp().tolist(), strict=True))
            for token, count in drawn.items():
                if not spec.head:
                    assert p[token] == pytest.approx(count / spec.draws, rel=1e-6)
            for token, mass in head.items():
                assert p[token] == pytest.approx(mass, rel=0.2, abs=0.03)
            row += 1


@pytest.mark.parametrize("rest", ["tail", "gold", "spread", "renormalise"])
def test_readings_of_a_top_k(rest):
    """One selection, four readings of the mass outside it."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(40, 300, generator=g) * 2
    labels, p = labels_for(z, g), torch.softmax(z.double(), 1)
    dist = read(Codec(300, 8, 0, rest), [select(z.clone(), SupportSpec(8, 0), 1.0, g)], [labels])
    top = p.topk(8)
    kept = torch.zeros_like(p).scatter_(1, top.indices, top.values)
    left = 1 - kept.sum(1)
    if rest == "gold":
        kept[torch.arange(40), torch.from_numpy(labels)] += left
    elif rest == "renormalise":
        kept /= kept.sum(1, keepdim=True)
    got = torch.zeros_like(p)
    got.scatter_add_(1, dist.ids_NK.clamp_min(0), dist.logp_NK.double().exp())
    torch.testing.assert_close(got, kept, rtol=0, atol=0.03)
    assert dist.spread == (dist.offers == "sample") == (rest == "spread")
    want = left if rest in ("tail", "spread") else torch.zeros(40).double()
    torch.testing.assert_close(dist.tail_N.double().exp(), want, rtol=0, atol=0.03)
    torch.testing.assert_close(got.sum(1) + dist.tail_N.double().exp(), torch.ones(40).double())


def test_probabilities_of_drawn_tokens_are_renormalised():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(30, 300, generator=g) * 2
    p = torch.softmax(z.double(), 1)
    support = select(z.clone(), SupportSpec(0, 16, drawn_p=True), 1.0, g)
    dist = read(Codec(300, 16, 0, "renormalise"), [support], [labels_for(z, g)])
    for n in range(30):
        ids = [i for i in dist.ids_NK[n].tolist() if i >= 0]
        want = p[n, ids] / p[n, ids].sum()
        torch.testing.assert_close(dist.logp_NK[n, : len(ids)].double().exp(), want, rtol=0.1, atol=0.01)
        assert (dist.tail_N == -torch.inf).all() and dist.entropy_N is None


def test_a_complete_support_is_the_live_target():
    """All tokens kept: the same loss and gradients as the teacher's full distribution, but for rounding of masses."""
    g = torch.Generator().manual_seed(0)
    teacher_ND, weight_VD = torch.randn(50, 16, generator=g), torch.randn(40, 16, generator=g) / 3
    student_ND = torch.randn(50, 16, generator=g).requires_grad_()
    z = teacher_ND @ weight_VD.T
    codec, labels = Codec(40, 40, 0), labels_for(z, g)
    for divergence in ("forward_kl", "reverse_kl", "jsd"):
        out = []
        support = select(z.clone(), SupportSpec(40, 0), 1.0, g)
        for target in (LiveTarget(teacher_ND, weight_VD), read(codec, [support], [labels])):
            loss = fused_distill_loss(student_ND, weight_VD, target, divergence=divergence)
            out.append((loss.detach(), torch.autograd.grad(loss, student_ND)[0]))
        (loss, grad), (again, own) = out
        assert again.item() == pytest.approx(loss.item(), rel=0.01)
        assert (own - grad).norm() < 0.03 * grad.norm()


# ---- exact expectations ----------------------------------------------------------------------------------------------


class _Start:
    """A generator whose every number is `start`."""

    def __init__(self, start):
        self.start = start

    def random(self):
        return self.start


def starts(odds):
    """Weights and midpoints of the intervals of a start in [0, 1) on which systematic rounding does not change."""
    cuts = np.unique(np.concatenate([[0.0, 1.0], (-np.cumsum(odds)) % 1.0]))
    return np.diff(cuts), (cuts[1:] + cuts[:-1]) / 2


@given(values=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_rounding_keeps_the_expectation_exactly(values):
    p = np.array(values)
    code = np.clip(np.searchsorted(-LEVELS, -p, side="right") - 1, 0, 254)
    odds = (p - LEVELS[code + 1]) / (LEVELS[code] - LEVELS[code + 1])
    weight, start = starts(odds)
    mean = sum(w * LEVELS[quantise(p, s)] for w, s in zip(weight, start, strict=True))
    np.testing.assert_allclose(mean, p, rtol=1e-9)


@pytest.mark.slow
def test_a_decoded_head_has_the_exact_expectation():
    """Ids, masses, tail and the cell that takes the rest, through the bytes: the mean over all roundings is p."""
    p_nV = torch.tensor([[0.52, 0.2, 0.13, 0.05, 0.1], [0.3, 0.29, 0.2, 0.01, 0.2]]).double()
    head = torch.tensor([[0, 1, 2], [0, 1, 2]])
    support = Support(head, p_nV.gather(1, head), p_nV[:, 3:].sum(1), NONE_Q, NONE_Q, NONE_Q, torch.zeros(2))
    codec, steps = Codec(5, 3, 0), 20000
    mean = torch.zeros(2, 4).double()
    for start in (np.arange(steps) + 0.5) / steps:
        record = codec.encode(support, np.array([0, 4]), HASH, _Start(start))
        dist = codec.decode([(np.frombuffer(record, np.uint8), np.array([0, 4]))])
        mean += torch.cat([dist.logp_NK, dist.tail_N[:, None]], 1).double().exp() / steps
    want = torch.cat([p_nV[:, :3], p_nV[:, 3:].sum(1, keepdim=True)], 1)
    torch.testing.assert_close(mean, want, rtol=0, atol=1e-5)


def test_entropy_keeps_its_mean():
    codec, steps = Codec(300, 0, 1), 2000
    entropy = torch.tensor([0.0, 0.01, 0.7, 3.0, 5.7])
    rows = torch.arange(5)
    support = Support(
        torch.zeros(5, 0, dtype=torch.int64),
        torch.zeros(5, 0),
        torch.ones(5),
        rows,
        rows,
        torch.ones(5, dtype=torch.int64),
        entropy,
    )
    total = torch.zeros(5).double()
    for start in (np.arange(steps) + 0.5) / steps:
        record = codec.encode(support, rows.numpy(), HASH, _Start(start))
        total += codec.decode([(np.frombuffer(record, np.uint8), rows.numpy())]).entropy_N.double() / steps
    torch.testing.assert_close(total, entropy.double().clamp_max(np.log(300)), rtol=0, atol=2e-3)


def test_context_hash_comes_first():
    support = select(torch.randn(2, 300), SupportSpec(2, 0), 1.0, torch.Generator())
    assert Codec(300, 2, 0).encode(support, np.array([1, 2]), HASH, np.random.default_rng(0))[:8].hex() == HASH


def test_nothing_is_not_decoded():
    with pytest.raises(ValueError, match="nothing to decode"):
        Codec(300, 2, 0).decode([])


def test_a_certain_position_takes_little():
    """The label with all of the mass: entropy, a flag, and eight steps through the classes of ids."""
    z = torch.full((80, 49152), -20.0)
    z[:, 7] = 20.0
    support = select(z, SupportSpec(0, 32), 1.0, torch.Generator())
    record = Codec(49152, 0, 32).encode(support, np.full(80, 7), HASH, np.random.default_rng(0))
    assert len(record) == 8 + 4 + 80 * (4 + 1 + 8) // 8
