"""Statement 28: what the sampled estimators estimate, by exact enumeration over a vocabulary of three tokens.

The expectation over samples of the student is a sum of three terms, so nothing here is Monte Carlo."""

import inspect

import pytest
import torch

from limbeck.losses import divergence, sampled_estimators, score_form

LOGITS = torch.tensor([[0.3, -0.7, 1.1]], dtype=torch.float64)
TEACHERS = [torch.tensor([[1.0, 0.2, -0.5]]).double(), torch.tensor([[0.31, -0.72, 1.12]]).double()]


def enumerated(z, u):
    """Log-probabilities that the two give to each of the three tokens, and the student's weights, held fixed."""
    logq, logp = torch.log_softmax(z, 1)[0], torch.log_softmax(u, 1)[0]
    return logq, logp, logq.exp().detach()


def gradient(loss, z):
    return torch.autograd.grad(loss, z, retain_graph=True)[0]


def plain(name, u):
    z = LOGITS.clone().requires_grad_()
    value = divergence(name, z, u).sum()
    return value.item(), gradient(value, z)


@pytest.mark.parametrize("u", TEACHERS)
def test_values(u):
    logq, logp, weights = enumerated(LOGITS, u)
    k1, k2, k3 = ((weights * k).sum().item() for k in sampled_estimators(logq, logp))
    reverse, _ = plain("reverse_kl", u)
    assert k1 == pytest.approx(reverse, abs=1e-12)
    assert k3 == pytest.approx(reverse, abs=1e-12)
    near = u is TEACHERS[1]
    assert k2 == pytest.approx(reverse, rel=0.02 if near else 0.5)
    assert abs(k2 - reverse) > (1e-9 if near else 1e-2), "k2 is biased"


@pytest.mark.parametrize("u", TEACHERS)
def test_gradients(u):
    z = LOGITS.clone().requires_grad_()
    logq, logp, weights = enumerated(z, u)
    k1, k2, k3 = (gradient((weights * k).sum(), z) for k in sampled_estimators(logq, logp))
    score = gradient((weights * score_form(logq, logp)).sum(), z)
    based = gradient((weights * score_form(logq, logp, baseline=0.7)).sum(), z)
    (_, reverse), (_, forward) = plain("reverse_kl", u), plain("forward_kl", u)
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)  # noqa: E731
    close(k1, torch.zeros_like(k1))
    close(k2, reverse)
    close(k3, forward)
    close(score, reverse)
    close(based, reverse)
    assert (forward - reverse).norm() > 1e-6, "the two directions differ, or the test says nothing"


def test_on_the_teachers_samples_k1_teaches_the_opposite():
    """Off-policy, the naive gradient lowers what the teacher says most: why the recipe does not offer it."""
    u = TEACHERS[0]
    z = LOGITS.clone().requires_grad_()
    logq, logp, _ = enumerated(z, u)
    step = -gradient((logp.exp() * sampled_estimators(logq, logp).k1_N).sum(), z)
    _, forward = plain("forward_kl", u)
    torch.testing.assert_close(step, forward)  # the step is the forward KL's gradient: uphill


def test_signs_and_agreement():
    logq, logp = torch.randn(2, 500, dtype=torch.float64).sub(2.0).clamp_max(0.0)
    found = sampled_estimators(logq, logp)
    assert (found.k2_N >= 0).all() and (found.k3_N >= 0).all() and (found.k1_N < 0).any()
    same = sampled_estimators(logq, logq)
    assert all((k == 0).all() for k in same)


def test_small_differences_do_not_cancel():
    """k3 is half the square for small log-ratios; exp(-r) - 1 + r in float32 would be noise."""
    logq = torch.full((4,), -1.0)
    logp = logq + torch.tensor([1e-3, -1e-3, 3e-4, -3e-4])
    ratio = (logq.double() - logp.double()).square() / 2
    torch.testing.assert_close(sampled_estimators(logq, logp).k3_N.double(), ratio, rtol=0.3, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(dtype):
    logq, logp = (torch.randn(2, 9) - 3).to(dtype)
    wide = sampled_estimators(logq.float(), logp.float())
    for got, want in zip(sampled_estimators(logq, logp), wide, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want)


def test_no_samples_and_no_probability():
    assert all(k.shape == (0,) for k in sampled_estimators(torch.zeros(0), torch.zeros(0)))
    found = sampled_estimators(torch.tensor([-1.0]), torch.tensor([-torch.inf]))
    assert found.k1_N.item() == found.k2_N.item() == found.k3_N.item() == torch.inf


def test_shapes_that_differ_are_refused():
    for function in (sampled_estimators, score_form):
        with pytest.raises(ValueError, match="differ in shape"):
            inspect.unwrap(function)(torch.zeros(2), torch.zeros(3))
