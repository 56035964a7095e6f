"""The fused loss of whole objectives, and every divergence at the edges, against fp64 formulas.

`test_divergences` has the plain divergences, `test_chunked` the fused ones one by one; here they meet: several terms at
several temperatures, adaptive ones, label smoothing and weights, and teachers and students at all ends.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.losses import DIVERGENCES, NAMES, Adaptive, Term, Terms, divergence, fused_distill_loss, fused_terms
from limbeck.types import Dist, Head, LiveTarget
from tests.losses.test_chunked import problem, reference, targets
from tests.losses.test_divergences import CASES, oracle

INF = math.inf
CELLS = tuple(name for name in NAMES if DIVERGENCES[name].needs != "full" and name not in ("adaptive", "ranking"))


def doubt(measure, u):
    """The teacher's entropy or 1 - its largest probability, at temperature 1."""
    p = torch.softmax(u, -1)
    return torch.special.entr(p).sum(-1) if measure == "entropy" else 1 - p.amax(-1)


def number(by, u):
    """An adaptive number of each row, in fp64, from its definition."""
    if not isinstance(by, Adaptive):
        return by
    return by.low + (by.high - by.low) * (doubt(by.measure, u) / by.full).clamp(0, 1)


def plain_terms(terms, z, u, cells, labels, weights):
    """The objective in fp64, from its docstring."""
    total = torch.zeros(len(z), dtype=torch.float64)
    for term in terms.kd:
        if isinstance(term.temperature, Adaptive):
            t = number(term.temperature, u)
            total = total + term.weight * divergence(
                term.divergence, z, u, temperature=t, labels_N=labels, **term.params
            )
        else:
            total = total + term.weight * reference(term, z, u, cells, labels)
    ce = torch.nn.functional.cross_entropy(z, labels, reduction="none", label_smoothing=terms.label_smoothing)
    loss = (1 - terms.ce_weight) * total + terms.ce_weight * ce
    if terms.position_weights:
        loss = loss * number(terms.position_weights, u)
    return (loss * weights).sum()


def same_as_fp64(t, target, cells, terms, *, tolerance):
    wide = [t[k].double().requires_grad_() for k in "hW"]
    u = t["ht"].double() @ t["Wt"].double().T
    want = plain_terms(terms, wide[0] @ wide[1].T, u, cells, t["y"], t["w"].double())
    own = [t[k].clone().requires_grad_() for k in "hW"]
    out = fused_terms(own[0], Head(own[1]), target, terms, labels_N=t["y"], weights_N=t["w"])
    pairs = [(out.loss, want), *zip(torch.autograd.grad(out.loss, own), torch.autograd.grad(want, wide), strict=True)]
    for mine, true in pairs:
        scale = max(1.0, true.detach().abs().max().item()) if true.numel() else 1.0
        torch.testing.assert_close(mine.double(), true, rtol=tolerance, atol=tolerance * scale)


temperatures = st.one_of(
    st.sampled_from([1.0, 2.0, 0.7]),
    st.builds(Adaptive, st.sampled_from(["entropy", "confidence"]), st.just(2.5), st.just(1.0), st.just(0.8)),
)
SHARED = {
    "ce_weight": st.sampled_from([0.0, 0.3]),
    "smooth": st.sampled_from([0.0, 0.2]),
    "rows": st.sampled_from([0, 1, 7]),
    "vocab": st.sampled_from([2, 33]),
    "seed": st.integers(0, 2**31),
}


def draw_term(draw, names, temperature):
    name = draw(st.sampled_from(names))
    params = draw(st.sampled_from(CASES[name]))
    temperature = temperature if DIVERGENCES[name].tempered else 1.0
    return Term(name, temperature, draw(st.sampled_from([0.25, 1.0, 3.0])), params)


def made(first, also, ce_weight, smooth, weights):
    return Terms(
        first.divergence,
        first.temperature,
        ce_weight,
        first.params,
        smooth if ce_weight else 0.0,
        tuple(also),
        weights,
    )


@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]), **SHARED)
@settings(max_examples=120, deadline=None)
def test_any_objective_on_a_live_target(data, dtype, ce_weight, smooth, rows, vocab, seed):
    terms = [draw_term(data.draw, NAMES, data.draw(temperatures)) for _ in range(data.draw(st.integers(1, 3)))]
    weights = data.draw(st.sampled_from([None, Adaptive("entropy", 0.2, 2.0, 1.5), Adaptive("confidence", 1.0, 0.0)]))
    t = problem(rows, vocab, 5, seed, dtype)
    target = LiveTarget(t["ht"], t["Wt"])
    wanted = made(terms[0], terms[1:], ce_weight, smooth, weights)
    same_as_fp64(t, target, None, wanted, tolerance=1e-9 if dtype == torch.float64 else 5e-4)


@given(data=st.data(), temperature=st.sampled_from([1.0, 2.0]), **SHARED)
@settings(max_examples=60, deadline=None)
def test_any_objective_on_a_support_and_its_tail(data, temperature, ce_weight, smooth, rows, vocab, seed):
    terms = [draw_term(data.draw, CELLS, temperature) for _ in range(data.draw(st.integers(1, 3)))]
    t = problem(rows, vocab, 5, seed, torch.float64)
    u = t["ht"] @ t["Wt"].T
    target, cells = targets("top_k", u, temperature, torch.float64)
    by = Adaptive("confidence", 0.5, 2.0, 0.7) if temperature == 1 else None  # a stored target has the doubt of its T
    same_as_fp64(t, target, cells, made(terms[0], terms[1:], ce_weight, smooth, by), tolerance=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_sample_weighed_by_its_entropy(temperature):
    """Forward KL twice, cross-entropy smoothed, and weights by the stored entropy (at the stored temperature)."""
    t = problem(9, 20, 5, 0, torch.float64)
    u = t["ht"] @ t["Wt"].T
    logp = torch.log_softmax(u / temperature, -1)
    entropy = torch.special.entr(logp.exp()).sum(-1)
    ids = torch.arange(20).expand(9, -1)
    target = Dist(ids, logp, torch.full((9,), -INF, dtype=torch.float64), entropy)
    by = Adaptive("entropy", 0.2, 2.0, 2.5)
    terms = Terms(
        "forward_kl", temperature, 0.3, {}, 0.1, (Term("forward_kl", temperature, weight=0.5),), position_weights=by
    )
    own, want = (t["h"].clone().requires_grad_() for _ in range(2))
    loss = fused_terms(own, Head(t["W"]), target, terms, labels_N=t["y"], weights_N=t["w"]).loss
    z = want @ t["W"].T
    kd = 1.5 * divergence("forward_kl", z, u, temperature=temperature)
    ce = torch.nn.functional.cross_entropy(z, t["y"], reduction="none", label_smoothing=0.1)
    plain = (t["w"] * by.at(entropy) * (0.7 * kd + 0.3 * ce)).sum()
    torch.testing.assert_close(loss, plain)
    loss.backward()
    plain.backward()
    torch.testing.assert_close(own.grad, want.grad)


# ---- edges -----------------------------------------------------------------------------------------------------------

VOCAB = 12


def edge(kind, rows=3):
    draw = torch.Generator().manual_seed(3)
    z = torch.randn(rows, VOCAB, generator=draw, dtype=torch.float64)
    hot = torch.zeros(rows, VOCAB, dtype=torch.bool)
    hot[torch.arange(rows), torch.arange(rows)] = True
    return {
        "ordinary": lambda: z,
        "uniform": lambda: torch.zeros_like(z),
        "huge": lambda: 1e4 * z,
        "one-hot": lambda: torch.zeros_like(z).masked_fill(~hot, -INF),
        "some impossible": lambda: z.masked_fill(hot, -INF),
    }[kind]()


EDGES = ("ordinary", "uniform", "huge", "one-hot", "some impossible")
# Infinite where the teacher calls impossible what the student does not, or compares logits that are minus infinity.
UNBOUNDED = ("reverse_kl", "adaptive", "mse", "cosine")
LABELS = torch.tensor([4, 5, 6])
TIES = ("adaptive", "ranking")  # of a uniform teacher, which tokens come first is anybody's choice


@pytest.mark.parametrize("teacher", EDGES)
@pytest.mark.parametrize("student", ["ordinary", "uniform", "huge"])
@pytest.mark.parametrize("name", NAMES)
def test_no_edge_makes_nan(name, student, teacher):
    """Values are those of fp64 where they are finite, never NaN; gradients are finite wherever values are."""
    z, u = edge(student).requires_grad_(), edge(teacher)
    value = divergence(name, z, u, labels_N=LABELS)
    assert not value.isnan().any()
    if not (teacher in ("one-hot", "some impossible") and name in UNBOUNDED):
        assert value.isfinite().all()
        (grad,) = torch.autograd.grad(value.sum(), z)
        assert grad.isfinite().all()
    if student == "ordinary" and (teacher == "ordinary" or (teacher == "uniform" and name not in TIES)):
        params = {key: param.default for key, param in DIVERGENCES[name].params.items()}
        torch.testing.assert_close(value, oracle(name, z, u, 1.0, LABELS, **params), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("teacher", EDGES)
@pytest.mark.parametrize("student", ["ordinary", "uniform", "huge"])
@pytest.mark.parametrize("name", NAMES)
def test_fused_is_plain_at_every_edge(name, student, teacher):
    """In float32, against the plain value in fp64; with a head that hands logits through."""
    if (teacher in ("one-hot", "some impossible") and name in UNBOUNDED) or (teacher == "uniform" and name in TIES):
        return
    z, u, eye = edge(student), edge(teacher), torch.eye(VOCAB)
    want = divergence(name, z, u, labels_N=LABELS).sum()
    own = z.float().requires_grad_()
    # A head cannot make minus infinity of the teacher's rows: a bias can, for all rows alike.
    live = LiveTarget(u.float(), eye) if u.isfinite().all() else None
    sparse = Dist(torch.arange(VOCAB).expand(3, -1), torch.log_softmax(u, -1).float(), torch.full((3,), -INF))
    for target in (live, sparse if DIVERGENCES[name].needs != "full" else None):
        if target is None:
            continue
        loss = fused_distill_loss(own, eye, target, divergence=name, labels_N=LABELS)
        torch.testing.assert_close(loss.double(), want, rtol=2e-4, atol=2e-4)
        (grad,) = torch.autograd.grad(loss, own)
        assert grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_vocabulary_of_one_has_nothing_to_teach(name):
    z = torch.randn(4, 1, dtype=torch.float64, requires_grad=True)
    value = divergence(name, z, torch.randn(4, 1).double(), labels_N=torch.zeros(4, dtype=torch.int64))
    (grad,) = torch.autograd.grad(value.sum(), z)
    assert (grad == 0).all()
    assert (value == (1.0 if name == "cosine" else 0.0)).all()  # two rows of zeros have no angle
    loss = fused_distill_loss(
        z.detach(), torch.ones(1, 1).double(), LiveTarget(z.detach(), torch.ones(1, 1).double()), divergence=name,
        labels_N=torch.zeros(4, dtype=torch.int64),
    )  # fmt: skip
    assert loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_no_worse_than_plain_half_precision(name, dtype):
    """Gradient and value, live and sparse, for the parameters that have special paths."""
    t = problem(48, 150, 16, 3)
    u = t["ht"].double() @ t["Wt"].double().T
    half = {k: t[k].to(dtype) for k in ("h", "W")}
    full = Dist(torch.arange(150).expand(48, -1), torch.log_softmax(u, -1).float(), torch.full((48,), -INF))
    for params in CASES[name]:
        given = {"labels_N": t["y"], **params}
        z64 = half["h"].double().requires_grad_()
        want = divergence(name, z64 @ half["W"].double().T, u, **given).sum()
        (want_grad,) = torch.autograd.grad(want, z64)
        if want_grad.norm() < 1e-9:  # always 0: there is nothing to compare with
            continue
        error = lambda got, grad: (  # noqa: E731
            (grad.double() - want_grad).norm() / want_grad.norm(),  # noqa: B023
            (got.double() - want).abs() / want.abs().clamp_min(1e-6),  # noqa: B023
        )
        own = half["h"].clone().requires_grad_()
        value = divergence(name, own @ half["W"].T, u, **given).sum()
        plain = error(value, torch.autograd.grad(value, own)[0])
        for target in (LiveTarget(t["ht"], t["Wt"]), *([] if DIVERGENCES[name].needs == "full" else [full])):
            loss = fused_distill_loss(own, half["W"], target, divergence=name, **given)
            fused = error(loss, torch.autograd.grad(loss, own)[0])
            assert fused[0] <= 1.2 * plain[0] + 1e-3
            assert fused[1] <= 1.2 * plain[1] + 1e-3
