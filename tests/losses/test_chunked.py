"""The fused loss against fp64 autograd of the plain one: value and every gradient, dense, sparse and live."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.losses import NAMES, chunked, divergence, fused_distill_loss, fused_terms, iter_logits, on_cells
from limbeck.losses.chunked import Terms
from limbeck.types import Dist, Head, LiveTarget

INF = math.inf


def problem(rows, vocab, width, seed, dtype=torch.float32, size=1.0):
    g = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    tensors = {
        "h": randn(rows, width) * size,
        "W": randn(vocab, width),
        "b": randn(vocab),
        "ht": randn(rows, width + 3),
        "Wt": randn(vocab, width + 3) * 0.5,
        "w": torch.rand(rows, generator=g, dtype=torch.float64),
    }
    tensors = {name: t.to(dtype) for name, t in tensors.items()}
    tensors["y"] = torch.randint(vocab, (rows,), generator=g)
    return tensors


def logits(h, w, b, softcap, scale):
    z = scale * (h @ w.T + b)
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def targets(kind, u, temperature, dtype):
    """A target of the given kind from fp64 teacher logits, and the cells it stands for (or None for the full ones)."""
    logp = torch.log_softmax(u / temperature, -1)
    rows, vocab = logp.shape
    if kind == "full_support":
        order = torch.argsort(torch.rand(rows, vocab), 1)
        return Dist(order, logp.gather(1, order).to(dtype), torch.full((rows,), -INF, dtype=dtype)), None
    k = max(1, vocab // 3)
    top, ids = logp.topk(k, 1)
    tail = torch.log1p(-top.exp().sum(1).clamp(max=1.0)) if k < vocab else torch.full((rows,), -INF).double()
    padded = torch.cat([ids, torch.full((rows, 2), -1)], 1)
    padded_logp = torch.cat([top, torch.full((rows, 2), -INF)], 1)
    return Dist(padded, padded_logp.to(dtype), tail.to(dtype)), (ids, top, tail)


def reference(name, z, u, cells, temperature, beta):
    if cells is None:
        return divergence(name, z, u, temperature=temperature, beta=beta)
    ids, top, tail = cells
    logq = torch.log_softmax(z / temperature, -1)
    inside = torch.zeros_like(logq, dtype=torch.bool).scatter_(1, ids, True)
    logq_tail = torch.logsumexp(logq.masked_fill(inside, -INF), 1)
    logq_cells = torch.cat([logq.gather(1, ids), logq_tail[:, None]], 1)
    return temperature**2 * on_cells(name, torch.cat([top, tail[:, None]], 1), logq_cells, beta=beta).value_N


@given(
    name=st.sampled_from(NAMES),
    kind=st.sampled_from(["live", "full_support", "top_k"]),
    rows=st.sampled_from([0, 1, 5, 9]),
    vocab=st.sampled_from([2, 7, 33]),
    temperature=st.sampled_from([1.0, 2.5]),
    ce_weight=st.sampled_from([0.0, 0.3, 1.0]),
    beta=st.sampled_from([0.0, 0.3, 1.0]),
    shape=st.sampled_from([(None, 1.0), (4.0, 1.0), (None, 0.25), (4.0, 0.7)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_value_and_gradients_agree_with_fp64(name, kind, rows, vocab, temperature, ce_weight, beta, shape, dtype, seed):
    softcap, scale = shape
    t = problem(rows, vocab, 6, seed, dtype)
    wide = {k: v.double().requires_grad_() if k in "hWb" else v for k, v in t.items()}
    z = logits(wide["h"], wide["W"], wide["b"], softcap, scale)
    u = t["ht"].double() @ t["Wt"].double().T
    target, cells = (
        (LiveTarget(t["ht"], Head(t["Wt"])), None) if kind == "live" else targets(kind, u, temperature, dtype)
    )
    ce = torch.nn.functional.cross_entropy(z, t["y"], reduction="none")
    kd = reference(name, z, u, cells, temperature, beta)
    want = (t["w"].double() * ((1 - ce_weight) * kd + ce_weight * ce)).sum()
    want_grads = torch.autograd.grad(want, [wide[k] for k in "hWb"])
    own = [t[k].clone().requires_grad_() for k in "hWb"]
    got = fused_distill_loss(
        own[0],
        own[1],
        target,
        divergence=name,
        temperature=temperature,
        labels_N=t["y"],
        ce_weight=ce_weight,
        bias_V=own[2],
        weights_N=t["w"],
        softcap=softcap,
        logit_scale=scale,
        beta=beta,
    )
    tolerance = 2e-4 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    for mine, true in zip(torch.autograd.grad(got, own), want_grads, strict=True):
        torch.testing.assert_close(
            mine.double(),
            true,
            rtol=tolerance,
            atol=tolerance * max(1.0, true.abs().max().item() if true.numel() else 1.0),
        )


@pytest.mark.parametrize("kind", ["live", "top_k"])
def test_chunks_do_not_change_the_result(kind, monkeypatch):
    t = problem(50, 40, 6, 0)
    u = t["ht"].double() @ t["Wt"].double().T
    target = LiveTarget(t["ht"], Head(t["Wt"])) if kind == "live" else targets("top_k", u, 1.0, torch.float32)[0]
    results = []
    for rows in (7, 64):
        monkeypatch.setattr(chunked, "SCRATCH_BYTES", 0)
        monkeypatch.setattr(chunked, "MIN_ROWS", rows)
        h, w = t["h"].clone().requires_grad_(), t["W"].clone().requires_grad_()
        loss = fused_distill_loss(h, w, target, labels_N=t["y"], ce_weight=0.2)
        results.append((loss.detach(), *torch.autograd.grad(loss, (h, w))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["live", "top_k"])
def test_bf16_is_no_worse_than_plain_bf16(name, kind):
    t = problem(64, 200, 16, 3)
    u = t["ht"].double() @ t["Wt"].double().T
    half = {k: t[k].bfloat16() for k in ("h", "W")}
    z64 = half["h"].double().requires_grad_()
    want = divergence(name, z64 @ half["W"].double().T, u).sum()
    (want_grad,) = torch.autograd.grad(want, z64)
    plain = half["h"].clone().requires_grad_()
    (plain_grad,) = torch.autograd.grad(divergence(name, plain @ half["W"].T, u).sum(), plain)
    target = (
        LiveTarget(t["ht"], Head(t["Wt"]))
        if kind == "live"
        else Dist(torch.arange(200).expand(64, -1), torch.log_softmax(u, -1).float(), torch.full((64,), -INF))
    )
    own = half["h"].clone().requires_grad_()
    (own_grad,) = torch.autograd.grad(fused_distill_loss(own, half["W"], target, divergence=name), own)
    error = lambda g: ((g.double() - want_grad).norm() / want_grad.norm()).item()  # noqa: E731
    assert error(own_grad) < 1.2 * error(plain_grad) + 1e-3


def test_sampled_target_reports_an_unbiased_kl_and_leaves_the_gradient_alone():
    t = problem(200, 30, 6, 1, torch.float64)
    u = t["ht"] @ t["Wt"].T
    logp = torch.log_softmax(u, -1)
    entropy = -(logp.exp() * logp).sum(1)
    z = t["h"] @ t["W"].T
    want = divergence("forward_kl", z, u).sum()
    draws = torch.multinomial(logp.exp(), 4000, replacement=True, generator=torch.Generator().manual_seed(0))
    counts = torch.zeros_like(logp).scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64)) / 4000
    ids = torch.arange(30).expand(200, -1)
    sampled = Dist(ids, counts.log(), torch.full((200,), -INF, dtype=torch.float64), entropy)
    out = fused_terms(t["h"], Head(t["W"]), sampled, Terms())
    assert out.kl is not None
    assert out.kl.item() == pytest.approx(want.item(), rel=0.01)
    with pytest.raises(ValueError, match="sample"):
        fused_distill_loss(t["h"], t["W"], sampled, divergence="reverse_kl")


def test_teacher_matters_and_gets_no_gradient():
    """Statements 6 and 8."""
    t = problem(9, 20, 6, 2)
    grads = []
    for shift in (0.0, 0.5):
        teacher_h, teacher_w = (t["ht"] + shift).requires_grad_(), t["Wt"].clone().requires_grad_()
        h = t["h"].clone().requires_grad_()
        fused_distill_loss(h, t["W"], LiveTarget(teacher_h, Head(teacher_w))).backward()
        assert teacher_h.grad is None and teacher_w.grad is None
        grads.append(h.grad)
    assert (grads[0] - grads[1]).norm() > 1e-3


def test_tail_cell_never_exceeds_the_full_divergence():
    """Statement 16: KL over k + 1 cells is at most the full KL, and grows to it."""
    t = problem(40, 60, 6, 4, torch.float64)
    u = t["ht"] @ t["Wt"].T
    full = divergence("forward_kl", t["h"] @ t["W"].T, u).sum().item()
    logp = torch.log_softmax(u, -1)
    values = []
    for k in (1, 5, 20, 59):
        top, ids = logp.topk(k, 1)
        dist = Dist(ids, top, torch.log1p(-top.exp().sum(1)))
        values.append(fused_distill_loss(t["h"], t["W"], dist).item())
    assert values == sorted(values)
    assert values[-1] <= full + 1e-9
    assert values[-1] == pytest.approx(full, rel=1e-3)


def test_kept_mass_is_not_renormalised():
    """Statement 15: at its optimum the student's mass on the support is the teacher's, not 1."""
    logp = torch.log_softmax(torch.linspace(3, -3, 20).double(), 0)[None]
    top, ids = logp.topk(4, 1)
    dist = Dist(ids, top, torch.log1p(-top.exp().sum(1)))
    eye = torch.eye(20, dtype=torch.float64)
    z = torch.zeros(1, 20, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([z], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = fused_distill_loss(z, eye, dist)
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(torch.softmax(z, -1).gather(1, ids), top.exp(), rtol=1e-4, atol=1e-5)


def test_huge_logits_and_minus_infinity_stay_finite():
    h = torch.tensor([[1e4, -1e4]], requires_grad=True)
    target = Dist(torch.tensor([[0, 1]]), torch.tensor([[0.0, -INF]]), torch.tensor([-INF]))
    loss = fused_distill_loss(h, torch.eye(2), target)
    loss.backward()
    assert torch.isfinite(loss) and h.grad is not None and torch.isfinite(h.grad).all()


def test_iter_logits_covers_every_row_once():
    t = problem(13, 9, 4, 5)
    head = Head(t["W"], t["b"], softcap=2.0, scale=0.5)
    rows = [z.clone() for _, z in iter_logits(t["h"], head, rows=4, vocab=7)]
    assert [len(r) for r in rows] == [4, 4, 4, 1]
    torch.testing.assert_close(torch.cat(rows), logits(t["h"], t["W"], t["b"], 2.0, 0.5)[:, :7])


def test_two_iterations_in_lock_step_leave_gradients_on():
    weight = torch.randn(9, 4, requires_grad=True)
    for _ in zip(
        iter_logits(torch.randn(7, 4), Head(weight), rows=3),
        iter_logits(torch.randn(7, 4), Head(weight), rows=3),
        strict=True,
    ):
        pass
    assert torch.is_grad_enabled() and weight.sum().requires_grad


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [({}, "ce_weight"), ({"ce_weight": 1.0}, "labels_N"), ({"divergence": "kl", "ce_weight": 1.0}, "forward_kl")],
)
def test_contradictions_are_refused(kwargs, words):
    with pytest.raises(ValueError, match=words):
        fused_distill_loss(torch.zeros(1, 2), torch.zeros(3, 2), None, **kwargs)
