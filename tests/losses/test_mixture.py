"""A mixture of teachers is one teacher: value and gradient of the mixture's divergence in double precision."""

import math

import pytest
import torch

from limbeck.losses import Term, Terms, divergence, fused_terms
from limbeck.losses.mixture import Mixture, mix
from limbeck.types import Dist, Head, LiveTarget

N, D, V = 7, 5, 23
WEIGHTS = [[0.7, 0.3], torch.rand(N, 2, generator=torch.Generator().manual_seed(1)) + 0.05]


@pytest.fixture
def setting():
    torch.manual_seed(0)
    own = [torch.randn(*shape, dtype=torch.float64) for shape in ((N, D), (V, D))]
    parts = [
        LiveTarget(2 * torch.randn(N, 3, dtype=torch.float64), torch.randn(V, 3, dtype=torch.float64), softcap=cap)
        for cap in (None, 4.0)
    ]
    return own, parts, torch.randint(V, (N,))


def mixed_p(parts, weights):
    shares = torch.as_tensor(weights, dtype=torch.float64)
    shares = (shares / shares.sum(-1, keepdim=True)).expand(N, 2)
    p = 0.0
    for number, part in enumerate(parts):
        u = part.hidden_ND @ part.weight_VD.T
        u = u if part.softcap is None else part.softcap * torch.tanh(u / part.softcap)
        p = p + shares[:, number : number + 1] * torch.softmax(u, 1)
    return p


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(
    ("name", "temperature"), [("forward_kl", 1.0), ("reverse_kl", 2.0), ("jsd", 1.0), ("tvd", 0.5)]
)
def test_value_and_gradient_are_the_mixtures(setting, weights, name, temperature):
    (h, w), parts, labels = setting
    grads = []
    for ours in (True, False):
        leaves = [h.clone().requires_grad_(), w.clone().requires_grad_()]
        if ours:
            terms = Terms(name, temperature, ce_weight=0.3)
            target = mix(parts, weights)
            assert isinstance(target, Mixture) and target.offers == "full" and target.knows_entropy
            loss = fused_terms(leaves[0], Head(leaves[1]), target, terms, labels_N=labels, scratch_bytes=1).loss
        else:
            z = leaves[0] @ leaves[1].T
            each = divergence(name, z, mixed_p(parts, weights).log(), temperature=temperature)
            ce = -torch.log_softmax(z, 1).gather(1, labels[:, None])[:, 0]
            loss = (0.7 * each + 0.3 * ce).sum()
        loss.backward()
        grads.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_one_target_and_slices_are_what_they_were(setting):
    (h, w), parts, labels = setting
    alone = fused_terms(h, Head(w), parts[0], Terms("jsd", 2.0), labels_N=labels)
    same = fused_terms(h, Head(w), mix(parts[:1], [2.0]), Terms("jsd", 2.0), labels_N=labels)
    torch.testing.assert_close(alone.loss, same.loss)
    target = mix(parts, WEIGHTS[1])
    whole = fused_terms(h, Head(w), target, Terms("reverse_kl"))
    halves = [
        fused_terms(h[cut], Head(w), target[cut].to("cpu"), Terms("reverse_kl")) for cut in (slice(3), slice(3, N))
    ]
    torch.testing.assert_close(whole.terms["kl"], halves[0].terms["kl"] + halves[1].terms["kl"])


def draws(p, num, seed):
    ids = torch.multinomial(p, num, replacement=True, generator=torch.Generator().manual_seed(seed))
    entropy = -(p * p.log()).sum(1)
    logp = torch.full(ids.shape, -math.log(num), dtype=torch.float64)
    return Dist(ids, logp, torch.full((len(p),), -math.inf, dtype=torch.float64), entropy)


def test_samples_mix_into_a_sample_of_the_mixture(setting):
    (h, w), parts, _ = setting
    exact, found = h.clone().requires_grad_(), h.clone().requires_grad_()
    fused_terms(exact, Head(w), mix(parts, [0.7, 0.3]), Terms()).loss.backward()
    stored = [draws(mixed_p([part, part], [1.0, 1.0]), 40_000, seed) for seed, part in enumerate(parts)]
    target = mix(stored, [0.7, 0.3])
    assert target.offers == "sample"
    fused_terms(found, Head(w), target, Terms()).loss.backward()
    assert exact.grad is not None and found.grad is not None
    torch.testing.assert_close(found.grad, exact.grad, rtol=0, atol=0.02 * float(exact.grad.abs().max()))
    with pytest.raises(ValueError, match="sample"):
        fused_terms(h, Head(w), target, Terms("reverse_kl"))


def test_what_cannot_be_mixed_is_refused(setting):
    _, parts, _ = setting
    top = Dist(
        torch.zeros(N, 1, dtype=torch.int64), torch.full((N, 1), -0.5), torch.full((N,), math.log1p(-math.exp(-0.5)))
    )
    for targets, weights, message in (
        ([top, top], [0.5, 0.5], "offer cells, cells"),
        ([parts[0], top], [0.5, 0.5], "offer full, cells"),
        (parts, [0.5], "shape"),
        (parts, [-0.5, 1.5], "not negative"),
        (parts, [0.0, 0.0], "not all zero"),
    ):
        with pytest.raises(ValueError, match=message):
            mix(targets, weights)
    assert Term("forward_kl").needs == "sample"
