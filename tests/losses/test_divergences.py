"""The plain divergences against ten-line fp64 formulas, and the statements that are about arithmetic."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.losses import DIVERGENCES, NAMES, divergence
from limbeck.losses.divergences import Cells, Extra, on_cells, resolve


def kl(a, b):
    return torch.special.xlogy(a, a / b).sum(-1)


def centred(x):
    return x - x.mean(-1, keepdim=True)


def oracle_ab(p, q, a, b):
    """Cichocki et al. 2011, the AB divergence and its limits, cell by cell."""
    if a == 0:
        return ((q**b * (q**b / p**b).log() - q**b + p**b) / b**2).sum(-1)
    if b == 0:
        return ((p**a * (p**a / q**a).log() - p**a + q**a) / a**2).sum(-1)
    return -((p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)) / (a * b)).sum(-1)


def oracle_adaptive(p, q, mu):
    out = []
    for row_p, row_q in zip(p, q, strict=True):
        order = row_p.argsort(descending=True)
        count = int((row_p[order].cumsum(0) < mu - 1e-12).sum()) + 1 if mu else 0
        gap = (row_p - row_q).abs()
        share = gap[order[:count]].sum() / gap.sum() if gap.sum() else 0.0
        out.append(share * kl(row_p, row_q) + (1 - share) * kl(row_q, row_p))
    return torch.stack(out) if out else p.sum(-1)


def oracle_decoupled(p, q, labels, alpha, beta):
    out = []
    for row_p, row_q, y in zip(p, q, labels, strict=True):
        rest = [i for i in range(len(row_p)) if i != y]
        two = [torch.stack([row[y], row[rest].sum()]) for row in (row_p, row_q)]
        others = [row[rest] / row[rest].sum() for row in (row_p, row_q)]
        out.append(alpha * kl(*two) + beta * kl(*others))
    return torch.stack(out) if out else p.sum(-1)


def oracle_ranking(z, u, k, margin):
    out = []
    for row_z, row_u in zip(z, u, strict=True):
        top = row_u.argsort(descending=True)[: int(k)].tolist()
        pairs = [(i, j) for n, i in enumerate(top) for j in top[n + 1 :]]
        hinges = [(margin - (row_z[i] - row_z[j])).clamp(min=0) for i, j in pairs]
        out.append(sum(hinges) / max(len(pairs), 1) + row_z.sum() * 0)
    return torch.stack(out) if out else z.sum(-1)


def oracle(name, z, u, temperature, labels, **params):
    """Per-row value in fp64, written from the definitions."""
    z, u = z.double() / temperature, u.double() / temperature
    p, q = torch.softmax(u, -1), torch.softmax(z, -1)
    a, b = params.get("alpha", 0.0), params.get("beta", 0.0)
    if name == "jsd" and b in (0, 1):
        name = "reverse_kl" if b else "forward_kl"
    m = b * p + (1 - b) * q
    value = {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: b * kl(p, m) + (1 - b) * kl(q, m),
        "skew_forward": lambda: kl(p, a * p + (1 - a) * q),
        "skew_reverse": lambda: kl(q, (1 - a) * p + a * q),
        "adaptive": lambda: oracle_adaptive(p, q, params["mu"]),
        "alpha_beta": lambda: oracle_ab(p, q, a, b),
        "tvd": lambda: (p - q).abs().sum(-1) / 2,
        "hellinger": lambda: 1 - (p * q).sqrt().sum(-1),
        "mse": lambda: (centred(z) - centred(u)).square().mean(-1) / 2,
        "cosine": lambda: 1 - torch.nn.functional.cosine_similarity(centred(z), centred(u), dim=-1),
        "decoupled": lambda: oracle_decoupled(p, q, labels, a, b),
        "ranking": lambda: oracle_ranking(z, u, params["k"], params["margin"]),
    }[name]()
    return temperature**2 * value


CASES = {
    "forward_kl": [{}],
    "reverse_kl": [{}],
    "jsd": [{"beta": b} for b in (0.0, 0.1, 0.5, 1.0)],
    "skew_forward": [{"alpha": a} for a in (0.0, 0.1, 0.7, 1.0)],
    "skew_reverse": [{"alpha": a} for a in (0.0, 0.1, 0.7, 1.0)],
    "adaptive": [{"mu": m} for m in (0.0, 0.5, 0.9)],
    "alpha_beta": [
        {"alpha": a, "beta": b} for a, b in ((0.2, 0.7), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.0, 0.5), (2.0, 1.0))
    ],
    "tvd": [{}],
    "hellinger": [{}],
    "mse": [{}],
    "cosine": [{}],
    "decoupled": [{"alpha": 1.0, "beta": 2.0}, {"alpha": 0.5, "beta": 0.0}],
    "ranking": [{"k": 3, "margin": 0.0}, {"k": 8, "margin": 0.5}],
}
PAIRS = [(name, params) for name, cases in CASES.items() for params in cases]


def test_every_divergence_has_cases():
    assert set(CASES) == set(NAMES)
    assert all(set(params) <= set(DIVERGENCES[name].params) for name, params in PAIRS)


@pytest.mark.parametrize(("name", "params"), PAIRS)
@given(
    rows=st.integers(0, 4),
    vocab=st.integers(2, 30),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 7.0]),
    size=st.sampled_from([0.1, 3.0, 20.0]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None)
def test_plain_agrees_with_fp64(name, params, rows, vocab, temperature, size, seed):
    generator = torch.Generator().manual_seed(seed)
    z, u = torch.randn(2, rows, vocab, generator=generator, dtype=torch.float64) * size
    labels = torch.randint(vocab, (rows,), generator=generator)
    temperature = temperature if DIVERGENCES[name].tempered else 1.0
    want = oracle(name, z, u, temperature, labels, **params)
    given = {"temperature": temperature, "labels_N": labels, **params}
    torch.testing.assert_close(divergence(name, z, u, **given), want, rtol=1e-7, atol=1e-8)
    scale = max(1.0, want.abs().max().item() if rows else 1.0)
    single = divergence(name, z.float(), u.float(), **given)
    torch.testing.assert_close(single.double(), want, rtol=1e-3, atol=1e-4 * temperature**2 * scale)


@pytest.mark.parametrize(("name", "params"), PAIRS)
def test_stated_gradient_is_the_derivative_of_the_value(name, params):
    """`g` through the softmax chain rule against autograd of the value itself, in fp64."""
    torch.manual_seed(1)
    z, u = torch.randn(2, 6, 19, dtype=torch.float64) * 2
    z.requires_grad_()
    labels = torch.randint(19, (6,))
    (want,) = torch.autograd.grad(divergence(name, z, u, labels_N=labels, **params).sum(), z)
    student = Cells.of_logits(z.detach())
    g = on_cells(name, Cells.of_logits(u), student, Extra(resolve(name, params), labels)).g_NC
    torch.testing.assert_close(g - student.p_NC * g.sum(1, keepdim=True), want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_temperature_by_position(name):
    if not DIVERGENCES[name].tempered:
        return
    z, u = torch.randn(2, 3, 9, dtype=torch.float64)
    t, labels = torch.tensor([0.5, 1.0, 4.0]).double(), torch.tensor([1, 2, 3])
    got = divergence(name, z, u, temperature=t, labels_N=labels)
    rows = [
        divergence(name, z[i : i + 1], u[i : i + 1], temperature=float(t[i]), labels_N=labels[i : i + 1])
        for i in range(3)
    ]
    torch.testing.assert_close(got, torch.cat(rows))


def test_direction_of_kl_on_two_tokens():
    """Statement 5: forward is KL(teacher || student), in closed form."""
    p, q = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]], dtype=torch.float64)
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    reverse = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert divergence("forward_kl", q.log(), p.log()).item() == pytest.approx(forward, abs=1e-12)
    assert divergence("reverse_kl", q.log(), p.log()).item() == pytest.approx(reverse, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_self_distillation_is_zero_with_zero_gradient(name):
    z = (torch.randn(7, 33, dtype=torch.float64) * 4).requires_grad_()
    temperature = 2.0 if DIVERGENCES[name].tempered else 1.0
    value = divergence(name, z, z.detach().clone(), temperature=temperature, labels_N=torch.arange(7))
    value.sum().backward()
    assert value.abs().max() < 1e-12
    assert z.grad is not None and z.grad.abs().max() < 1e-12


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_gradient_stays_of_one_size_over_temperature(name):
    """Statement 1: with T^2 the mean gradient stays within 2.5x for T = 1 ... 16."""
    torch.manual_seed(0)
    z, u = torch.randn(2, 64, 100, dtype=torch.float64) * 3
    sizes = []
    for temperature in (1.0, 2.0, 4.0, 8.0, 16.0):
        student = z.clone().requires_grad_()
        divergence(name, student, u, temperature=temperature).sum().backward()
        assert student.grad is not None
        sizes.append(student.grad.abs().mean().item())
    assert max(sizes) / min(sizes) < (2.5 if name == "forward_kl" else 4.0)


def test_forward_kl_gradient_is_t_times_q_minus_p():
    """Statement 6."""
    torch.manual_seed(0)
    z, u = torch.randn(2, 5, 11, dtype=torch.float64)
    student = z.clone().requires_grad_()
    divergence("forward_kl", student, u, temperature=3.0).sum().backward()
    want = 3.0 * (torch.softmax(z / 3, -1) - torch.softmax(u / 3, -1))
    torch.testing.assert_close(student.grad, want)


def kl_of(name, logp, logq):
    return on_cells(name, Cells.of_logp(logp), Cells.of_logp(logq), Extra(resolve(name, {})))


def test_known_values_of_mode_seeking():
    """p = (.45, .45, .05, .05): a spread and a committed student (published static case, four decimals)."""
    p = torch.tensor([[0.45, 0.45, 0.05, 0.05]]).double().log()
    spread = torch.full((1, 4), 0.25).double().log()
    committed = torch.tensor([[0.85, 0.05, 0.05, 0.05]]).double().log()
    assert kl_of("forward_kl", p, spread).value_N.item() == pytest.approx(0.368, abs=5e-4)
    assert kl_of("reverse_kl", p, spread).value_N.item() == pytest.approx(0.511, abs=5e-4)
    assert kl_of("forward_kl", p, committed).value_N.item() == pytest.approx(0.703, abs=5e-4)
    assert kl_of("reverse_kl", p, committed).value_N.item() == pytest.approx(0.431, abs=5e-4)


def test_one_hot_teacher_and_student_do_not_make_nan():
    hot = torch.tensor([[0.0, -math.inf, -math.inf]])
    assert kl_of("forward_kl", hot, torch.tensor([[0.5, 0.3, 0.2]]).log()).value_N.item() == pytest.approx(math.log(2))
    assert kl_of("reverse_kl", torch.tensor([[0.5, 0.3, 0.2]]).log(), hot).value_N.item() == pytest.approx(math.log(2))
    assert torch.isfinite(kl_of("jsd", hot, hot.roll(1, 1)).value_N).all()


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"name": "kl"}, "forward_kl"),
        ({"name": "jsd", "beta": 1.5}, "0 to 1"),
        ({"name": "forward_kl", "temperature": 0.0}, "above 0"),
        ({"name": "forward_kl", "beta": 0.5}, "takes none"),
        ({"name": "alpha_beta", "alpha": 0.0, "beta": 0.0}, "at least one"),
        ({"name": "cosine", "temperature": 2.0}, "leave it at 1"),
        ({"name": "decoupled"}, "labels_N"),
    ],
)
def test_bad_arguments_name_what_is_allowed(kwargs, words):
    z = torch.zeros(1, 3)
    with pytest.raises(ValueError, match=words):
        divergence(student_logits_NV=z, teacher_logits_NV=z, **kwargs)


def test_vocabularies_that_differ_are_refused():
    with pytest.raises(ValueError, match="cut both"):
        inspect.unwrap(divergence)("forward_kl", torch.zeros(1, 3), torch.zeros(1, 4))
