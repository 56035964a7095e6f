"""The plain divergences against ten-line fp64 formulas, and the statements that are about arithmetic."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.losses import NAMES, divergence, on_cells


def oracle(name, z, u, temperature, beta):
    """Per-row value in fp64, written from the definitions."""
    p = torch.softmax(u.double() / temperature, -1)
    q = torch.softmax(z.double() / temperature, -1)
    kl = lambda a, b: torch.special.xlogy(a, a / b).sum(-1)  # noqa: E731
    if name == "forward_kl" or (name == "jsd" and beta == 0):
        value = kl(p, q)
    elif name == "reverse_kl" or (name == "jsd" and beta == 1):
        value = kl(q, p)
    else:
        m = beta * p + (1 - beta) * q
        value = beta * kl(p, m) + (1 - beta) * kl(q, m)
    return temperature**2 * value


@given(
    name=st.sampled_from(NAMES),
    rows=st.integers(0, 5),
    vocab=st.integers(1, 40),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 7.0]),
    beta=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    size=st.sampled_from([0.1, 3.0, 30.0]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_plain_agrees_with_fp64(name, rows, vocab, temperature, beta, size, seed):
    generator = torch.Generator().manual_seed(seed)
    z, u = torch.randn(2, rows, vocab, generator=generator, dtype=torch.float64) * size
    want = oracle(name, z, u, temperature, beta)
    got = divergence(name, z, u, temperature=temperature, beta=beta)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, equal_nan=True)
    single = divergence(name, z.float(), u.float(), temperature=temperature, beta=beta)
    torch.testing.assert_close(single.double(), want, rtol=1e-3, atol=1e-4 * temperature**2)


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
    value = divergence(name, z, z.detach().clone(), temperature=2.0)
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


def test_known_values_of_mode_seeking():
    """p = (.45, .45, .05, .05): a spread and a committed student (published static case, four decimals)."""
    p = torch.tensor([[0.45, 0.45, 0.05, 0.05]]).double().log()
    spread = torch.full((1, 4), 0.25).double().log()
    committed = torch.tensor([[0.85, 0.05, 0.05, 0.05]]).double().log()
    assert on_cells("forward_kl", p, spread).value_N.item() == pytest.approx(0.368, abs=5e-4)
    assert on_cells("reverse_kl", p, spread).value_N.item() == pytest.approx(0.511, abs=5e-4)
    assert on_cells("forward_kl", p, committed).value_N.item() == pytest.approx(0.703, abs=5e-4)
    assert on_cells("reverse_kl", p, committed).value_N.item() == pytest.approx(0.431, abs=5e-4)


def test_one_hot_teacher_and_student_do_not_make_nan():
    hot = torch.tensor([[0.0, -math.inf, -math.inf]])
    assert on_cells("forward_kl", hot, torch.tensor([[0.5, 0.3, 0.2]]).log()).value_N.item() == pytest.approx(
        math.log(2)
    )
    assert on_cells("reverse_kl", torch.tensor([[0.5, 0.3, 0.2]]).log(), hot).value_N.item() == pytest.approx(
        math.log(2)
    )
    assert torch.isfinite(on_cells("jsd", hot, hot.roll(1, 1)).value_N).all()


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"name": "kl"}, "forward_kl"),
        ({"name": "jsd", "beta": 1.5}, "0 to 1"),
        ({"name": "forward_kl", "temperature": 0.0}, "above 0"),
    ],
)
def test_bad_arguments_name_what_is_allowed(kwargs, words):
    z = torch.zeros(1, 3)
    with pytest.raises(ValueError, match=words):
        divergence(student_logits_NV=z, teacher_logits_NV=z, **kwargs)


def test_vocabularies_that_differ_are_refused():
    with pytest.raises(ValueError, match="cut both"):
        inspect.unwrap(divergence)("forward_kl", torch.zeros(1, 3), torch.zeros(1, 4))
