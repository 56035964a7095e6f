"""The fused loss against fp64 autograd of the plain one: value and every gradient, dense, sparse and live."""

import math
import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.losses import (
    DIVERGENCES,
    NAMES,
    Adaptive,
    Term,
    Terms,
    chunked,
    divergence,
    fused_distill_loss,
    fused_terms,
    iter_logits,
    on_cells,
)
from limbeck.losses import rows as row_maths
from limbeck.losses.divergences import Cells, Extra
from limbeck.types import Dist, Head, LiveTarget
from tests.losses.test_divergences import PAIRS

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


def reference(term, z, u, cells, labels):
    """`T^2 * divergence` of one term per row, in fp64: the plain function, or the same on K + 1 cells."""
    t = term.temperature
    if cells is None:
        return divergence(term.divergence, z, u, temperature=t, labels_N=labels, **term.params)
    ids, top, tail = cells
    logq = torch.log_softmax(z / t, -1)
    inside = torch.zeros_like(logq, dtype=torch.bool).scatter_(1, ids, True)
    logq_tail = torch.logsumexp(logq.masked_fill(inside, -INF), 1)
    student = Cells.of_logp(torch.cat([logq.gather(1, ids), logq_tail[:, None]], 1))
    teacher = Cells.of_logp(torch.cat([top, tail[:, None]], 1))
    return t**2 * on_cells(term.divergence, teacher, student, Extra(term.params, tail=True)).value_N


def assert_like_fp64(t, target, cells, terms, shape=(None, 1.0), dtype=torch.float32):
    """Value and gradients of hidden rows, weight and bias against fp64 autograd of the plain formulas."""
    softcap, scale = shape
    wide = {k: v.double().requires_grad_() if k in "hWb" else v for k, v in t.items()}
    z = logits(wide["h"], wide["W"], wide["b"], softcap, scale)
    u = t["ht"].double() @ t["Wt"].double().T
    kd = sum(term.weight * reference(term, z, u, cells, t["y"]) for term in terms.kd)
    smooth = terms.label_smoothing
    ce = torch.nn.functional.cross_entropy(z, t["y"], reduction="none", label_smoothing=smooth)
    want = (t["w"].double() * ((1 - terms.ce_weight) * kd + terms.ce_weight * ce)).sum()
    want_grads = torch.autograd.grad(want, [wide[k] for k in "hWb"])
    own = [t[k].clone().requires_grad_() for k in "hWb"]
    head = Head(own[1], own[2], softcap, scale)
    got = fused_terms(own[0], head, target, terms, labels_N=t["y"], weights_N=t["w"])
    tolerance = 2e-4 if dtype == torch.float32 else 1e-8
    close = lambda a, b: torch.testing.assert_close(  # noqa: E731
        a.double(), b, rtol=tolerance, atol=tolerance * max(1.0, b.detach().abs().max().item() if b.numel() else 1.0)
    )
    close(got.loss, want)
    close(got.terms["ce"], ce.sum())
    for mine, true in zip(torch.autograd.grad(got.loss, own), want_grads, strict=True):
        close(mine, true)


@pytest.mark.parametrize(("name", "params"), PAIRS)
@given(
    kind=st.sampled_from(["live", "full_support", "top_k"]),
    rows=st.sampled_from([0, 1, 5, 9]),
    vocab=st.sampled_from([2, 7, 33]),
    temperature=st.sampled_from([1.0, 2.5]),
    ce_weight=st.sampled_from([0.0, 0.3, 1.0]),
    shape=st.sampled_from([(None, 1.0), (4.0, 1.0), (None, 0.25), (4.0, 0.7)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=12, deadline=None)
def test_value_and_gradients_agree_with_fp64(
    name, params, kind, rows, vocab, temperature, ce_weight, shape, dtype, seed
):
    spec = DIVERGENCES[name]
    kind = "live" if spec.needs == "full" else kind
    temperature = temperature if spec.tempered else 1.0
    t = problem(rows, vocab, 6, seed, dtype)
    u = t["ht"].double() @ t["Wt"].double().T
    live = LiveTarget(t["ht"], t["Wt"])
    target, cells = (live, None) if kind == "live" else targets(kind, u, temperature, dtype)
    if kind == "full_support" and name in ("adaptive", "ranking"):
        cells = (target.ids_NK, target.logp_NK.double(), target.tail_N.double())
    assert_like_fp64(t, target, cells, Terms(name, temperature, ce_weight, params), shape, dtype)


@given(
    kind=st.sampled_from(["live", "top_k"]),
    first=st.sampled_from(["forward_kl", "jsd", "tvd"]),
    second=st.sampled_from(["reverse_kl", "hellinger", "forward_kl"]),
    temperatures=st.sampled_from([(1.0, 1.0), (2.0, 2.0), (1.0, 3.0), (3.0, 1.0)]),
    ce_weight=st.sampled_from([0.0, 0.4]),
    smooth=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_several_terms_share_one_pass(kind, first, second, temperatures, ce_weight, smooth, seed):
    smooth = smooth if ce_weight else 0.0
    if kind == "top_k":  # one stored distribution has one temperature
        temperatures = (temperatures[0], temperatures[0])
    t = problem(5, 17, 6, seed, torch.float64)
    u = t["ht"] @ t["Wt"].T
    live = LiveTarget(t["ht"], t["Wt"])
    target, cells = (live, None) if kind == "live" else targets("top_k", u, temperatures[0], torch.float64)
    terms = Terms(
        first, temperatures[0], ce_weight, label_smoothing=smooth, also=(Term(second, temperatures[1], weight=0.3),)
    )
    assert_like_fp64(t, target, cells, terms, dtype=torch.float64)


@pytest.mark.parametrize("smooth", [0.0, 0.2])
@pytest.mark.parametrize("ce_weight", [1.0, 0.7])
def test_cross_entropy_alone(smooth, ce_weight):
    """Without a target, label smoothing as torch has it."""
    t = problem(6, 31, 6, 0, torch.float64)
    own = t["h"].clone().requires_grad_()
    terms = Terms(ce_weight=1.0, label_smoothing=smooth)
    fused_terms(own, Head(t["W"]), None, terms, labels_N=t["y"]).loss.mul(ce_weight).backward()
    want = t["h"].clone().requires_grad_()
    ce = torch.nn.functional.cross_entropy(want @ t["W"].T, t["y"], reduction="sum", label_smoothing=smooth)
    (ce * ce_weight).backward()
    torch.testing.assert_close(own.grad, want.grad)


@pytest.mark.parametrize("ce_weight", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_tail_spread_evenly_is_forward_kl_to_that_distribution(temperature, ce_weight):
    t = problem(6, 31, 6, 0, torch.float64)
    u = t["ht"] @ t["Wt"].T
    target, (ids, top, tail) = targets("top_k", u, temperature, torch.float64)
    p = (tail.exp() / (31 - ids.shape[1]))[:, None].expand(-1, 31).scatter(1, ids, top.exp())
    own, want = (t["h"].clone().requires_grad_() for _ in range(2))
    terms = Terms(temperature=temperature, ce_weight=ce_weight)
    out = fused_terms(own, Head(t["W"]), replace(target, spread=True), terms, labels_N=t["y"])
    z = want @ t["W"].T
    kd = (p * (p.log() - torch.log_softmax(z / temperature, -1))).sum() * temperature**2
    plain = (1 - ce_weight) * kd + ce_weight * torch.nn.functional.cross_entropy(z, t["y"], reduction="sum")
    torch.testing.assert_close(out.loss, plain)
    out.loss.backward()
    plain.backward()
    torch.testing.assert_close(own.grad, want.grad)


@pytest.mark.parametrize("measure", ["entropy", "confidence"])
def test_temperature_and_weight_by_the_teachers_doubt(measure):
    t = problem(8, 31, 6, 0, torch.float64)
    live = LiveTarget(t["ht"], t["Wt"])
    u = t["ht"] @ t["Wt"].T
    p = torch.softmax(u, -1)
    doubt = -(p * p.log()).sum(-1) / 2.5 if measure == "entropy" else (1 - p.amax(-1)) / 0.8
    by = lambda low, high: Adaptive(measure, low, high, full=2.5 if measure == "entropy" else 0.8)  # noqa: E731
    terms = Terms(temperature=by(1.0, 3.0), position_weights=by(0.2, 1.0))
    t_N = 1.0 + 2.0 * doubt.clamp(max=1)
    own, want = (t["h"].clone().requires_grad_() for _ in range(2))
    loss = fused_terms(own, Head(t["W"]), live, terms).loss
    plain = ((0.2 + 0.8 * doubt.clamp(max=1)) * divergence("forward_kl", want @ t["W"].T, u, temperature=t_N)).sum()
    torch.testing.assert_close(loss, plain)
    loss.backward()
    plain.backward()
    torch.testing.assert_close(own.grad, want.grad)


def test_a_second_backward_is_refused():
    h = torch.randn(3, 4, requires_grad=True)
    loss = fused_distill_loss(h, torch.randn(7, 4), None, labels_N=torch.zeros(3, dtype=torch.int64), ce_weight=1.0)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used already"):
        loss.backward()


@pytest.mark.parametrize("kind", ["live", "top_k"])
def test_chunks_do_not_change_the_result(kind, monkeypatch):
    t = problem(50, 40, 6, 0)
    u = t["ht"].double() @ t["Wt"].double().T
    target = LiveTarget(t["ht"], t["Wt"]) if kind == "live" else targets("top_k", u, 1.0, torch.float32)[0]
    results = []
    for rows in (7, 64):
        monkeypatch.setattr(chunked, "MIN_ROWS", rows)
        monkeypatch.setattr(chunked, "BLOCK_BYTES", {"cpu": 3 * 4 * 40, "cuda": 0})
        h, w = t["h"].clone().requires_grad_(), t["W"].clone().requires_grad_()
        loss = fused_distill_loss(h, w, target, labels_N=t["y"], ce_weight=0.2, scratch_bytes=0)
        results.append((loss.detach(), *torch.autograd.grad(loss, (h, w))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["live", "top_k"])
def test_bf16_is_no_worse_than_plain_bf16(name, kind):
    if DIVERGENCES[name].needs == "full" and kind == "top_k":
        return
    t = problem(64, 200, 16, 3)
    u = t["ht"].double() @ t["Wt"].double().T
    half = {k: t[k].bfloat16() for k in ("h", "W")}
    z64 = half["h"].double().requires_grad_()
    want = divergence(name, z64 @ half["W"].double().T, u, labels_N=t["y"]).sum()
    (want_grad,) = torch.autograd.grad(want, z64)
    plain = half["h"].clone().requires_grad_()
    (plain_grad,) = torch.autograd.grad(divergence(name, plain @ half["W"].T, u, labels_N=t["y"]).sum(), plain)
    target = (
        LiveTarget(t["ht"], t["Wt"])
        if kind == "live"
        else Dist(torch.arange(200).expand(64, -1), torch.log_softmax(u, -1).float(), torch.full((64,), -INF))
    )
    own = half["h"].clone().requires_grad_()
    (own_grad,) = torch.autograd.grad(fused_distill_loss(own, half["W"], target, divergence=name, labels_N=t["y"]), own)
    error = lambda g: ((g.double() - want_grad).norm() / want_grad.norm()).item()  # noqa: E731
    assert error(own_grad) < 1.2 * error(plain_grad) + 1e-3


@pytest.mark.parametrize("rows", [64, 32, 16])
def test_a_bf16_heads_gradient_is_no_worse_than_plain_bf16(rows, monkeypatch):
    """In one chunk, in two (summed in bfloat16), and in four (summed in float32)."""
    t = problem(64, 200, 16, 3)
    monkeypatch.setattr(chunked, "MAX_ROWS", rows)
    monkeypatch.setattr(chunked, "BLOCK_BYTES", {"cpu": 8 * 4 * 200, "cuda": 0})
    half = {k: t[k].bfloat16() for k in ("h", "W")}

    def gradient(h, w):
        w = w.clone().requires_grad_()
        return torch.autograd.grad(torch.nn.functional.cross_entropy(h @ w.T, t["y"], reduction="sum"), w)[0]

    want, plain = gradient(half["h"].double(), half["W"].double()), gradient(half["h"], half["W"])
    own = half["W"].clone().requires_grad_()
    loss = fused_distill_loss(half["h"], own, None, labels_N=t["y"], ce_weight=1.0)
    (got,) = torch.autograd.grad(loss, own)
    assert got.dtype == torch.bfloat16
    error = lambda g: ((g.double() - want).norm() / want.norm()).item()  # noqa: E731
    assert error(got) < 1.1 * error(plain)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("ce_weight", [0.0, 0.3])
@pytest.mark.parametrize(
    ("name", "params"), [("forward_kl", {}), ("reverse_kl", {}), *(("jsd", {"beta": b}) for b in (0.0, 0.2, 1.0))]
)
def test_closed_forms_are_the_plain_ones(name, params, ce_weight, temperature):
    """Also where a token is impossible for one side, and where the two agree."""
    g = torch.Generator().manual_seed(0)
    z, u = (torch.randn(6, 31, generator=g, dtype=torch.float64) * 3 for _ in range(2))
    z[0, 3], u[1, 4], z[2, 5], u[2, 5] = -1e30, -1e30, -1e30, -1e30
    z[3] = u[3]
    labels = torch.randint(31, (6,), generator=g)
    terms = Terms(name, temperature, ce_weight, params)
    own, plain = z.clone(), z.clone()
    got = row_maths.live_rows(own, u.clone(), terms, labels)
    want = row_maths._general_rows(plain, u.clone(), terms, labels)
    torch.testing.assert_close(own, plain)
    for a, b in zip(got[:3], want[:3], strict=True):
        torch.testing.assert_close(a, b)
    assert got.kl_n[3].abs() < 1e-12
    assert (own[3] - ce_weight * (torch.softmax(z[3], -1) - torch.eye(31)[labels[3]])).abs().max() < 1e-12


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler meets torch's own
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("name", ["forward_kl", "jsd", "skew_reverse"])
@pytest.mark.parametrize(("dtype", "softcap"), [(torch.float32, None), (torch.float32, 5.0), (torch.bfloat16, None)])
def test_compiled_and_eager_give_the_same_numbers(name, dtype, softcap):
    t = problem(23, 70, 6, 0, dtype)
    target, terms = LiveTarget(t["ht"], t["Wt"]), Terms(name, ce_weight=0.2)
    results = []
    for compiled in (False, True):
        own = [t[k].clone().requires_grad_() for k in ("hWb" if softcap is None else "hW")]
        head = Head(own[1], own[2] if softcap is None else None, softcap)
        out = fused_terms(own[0], head, target, terms, labels_N=t["y"], weights_N=t["w"], compile=compiled)
        results.append((out.loss.detach(), out.terms["ce"], *torch.autograd.grad(out.loss, own)))
    tolerance = 2e-5 if dtype == torch.float32 else 2**-7
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_what_cannot_be_compiled_is_refused():
    t = problem(3, 7, 4, 0)
    live, head = LiveTarget(t["ht"], t["Wt"]), Head(t["W"], t["b"], softcap=5.0)
    with pytest.raises(ValueError, match="both"):
        fused_terms(t["h"], head, live, Terms(), compile=True)
    with pytest.raises(ValueError, match="live"):
        fused_distill_loss(t["h"], t["W"], None, labels_N=t["y"], ce_weight=1.0, compile=True)


@pytest.mark.parametrize(("num", "most", "want"), [(0, 8, []), (3, 8, [3]), (17, 8, [8, 8, 1]), (18, 12, [9, 9])])
def test_chunks_are_of_one_size_and_cover_every_row(num, most, want):
    products = chunked._Products(torch.zeros(num, 2), Head(torch.zeros(5, 2)), 0, block_rows=1 if most == 12 else 4)
    products.cut(most)
    assert [part.stop - part.start for part in products.chunks()] == want


def test_empty_slots_of_a_support_do_not_touch_token_0():
    q = torch.rand(3, 5)
    want = q.clone()
    want[0, 2] = want[1, 4] = want[1, 0] = 0
    ids = torch.tensor([[0, 2], [4, 0], [0, 0]])
    row_maths._zero_support_(q, ids, torch.tensor([[False, True], [True, True], [False, False]]))
    assert torch.equal(q, want)


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
    assert out.terms["kl"].item() == pytest.approx(want.item(), rel=0.01)
    with pytest.raises(ValueError, match="sample"):
        fused_distill_loss(t["h"], t["W"], sampled, divergence="reverse_kl")


def test_teacher_matters_and_gets_no_gradient():
    """Statements 6 and 8."""
    t = problem(9, 20, 6, 2)
    grads = []
    for shift in (0.0, 0.5):
        teacher_h, teacher_w = (t["ht"] + shift).requires_grad_(), t["Wt"].clone().requires_grad_()
        h = t["h"].clone().requires_grad_()
        fused_distill_loss(h, t["W"], LiveTarget(teacher_h, teacher_w)).backward()
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


@pytest.mark.parametrize(
    ("hidden", "labels", "weights", "words"),
    [
        ((2, 3, 4), [0, 1], None, r"shape \[2, 3, 4\]; \[positions, 4\]"),
        ((2, 5), [0, 1], None, r"shape \[2, 5\]; \[positions, 4\]"),
        ((2, 4), [0, -100], None, "labels_N has -100; the head's 9 tokens are 0 to 8"),
        ((2, 4), [9, 0], None, "labels_N has 9"),
        ((2, 4), [0, 1, 2], None, "labels_N has shape .3.; one for each of 2"),
        ((2, 4), [0, 1], [1.0], "weights_N has shape .1."),
    ],
)
def test_shapes_and_labels_that_do_not_fit_are_named(hidden, labels, weights, words):
    weights_N = None if weights is None else torch.tensor(weights)
    with pytest.raises(ValueError, match=words):
        fused_distill_loss(
            torch.zeros(hidden),
            torch.zeros(9, 4),
            None,
            ce_weight=1.0,
            labels_N=torch.tensor(labels),
            weights_N=weights_N,
        )
