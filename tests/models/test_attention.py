"""The one attention of ours: masks, windows, groups and soft caps against a plain product in float64."""

import pytest
import torch
from transformers import AttentionInterface

from limbeck.models import attention
from limbeck.models.attention import ScoreRule, attend, seen_mask


def plain(q, k, v, rule, seen_TL):
    """Every head by itself, with loops where the real one has none."""
    q, k, v = q.double(), k.double(), v.double()
    out = torch.empty_like(q)
    for head in range(q.shape[1]):
        kind = head * k.shape[1] // q.shape[1]
        scores = q[:, head] @ k[:, kind].transpose(1, 2) * (rule.scale or q.shape[-1] ** -0.5)
        if rule.softcap:
            scores = rule.softcap * torch.tanh(scores / rule.softcap)
        out[:, head] = scores.masked_fill(~seen_TL, float("-inf")).softmax(-1) @ v[:, kind]
    return out


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_it_is_the_plain_product(softcap, window, heads):
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(2, heads[0], 5, 8, generator=draw) * 3
    k, v = (torch.randn(2, heads[1], 9, 8, generator=draw) for _ in range(2))
    rule = ScoreRule(0.3, softcap, window, 0.0)
    seen = seen_mask(5, 9, window, q.device)
    added = torch.zeros(5, 9).masked_fill(~seen, float("-inf"))
    expected = plain(q, k, v, rule, seen)
    for mask in (seen, added):
        assert torch.allclose(attend(q, k, v, rule, mask).double(), expected, atol=2e-6)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_causal_needs_no_mask(softcap):
    q, k, v = (torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    rule = ScoreRule(None, softcap, None, 0.0)
    expected = plain(q, k, v, rule, seen_mask(6, 6, None, q.device))
    assert torch.allclose(attend(q, k, v, rule, None, causal=True).double(), expected, atol=2e-6)


def test_what_new_tokens_see():
    assert seen_mask(2, 4, None, torch.device("cpu")).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert seen_mask(2, 4, 2, torch.device("cpu")).int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]


def test_transformers_parameters_arrive_as_a_rule():
    seen = []

    def noted(module, query, key, value, rule, passed):
        seen.append((rule, passed))
        return query

    attention.register("limbeck_noted", noted)
    x = torch.zeros(1)
    found = AttentionInterface()["limbeck_noted"](
        torch.nn.Identity(), x, x, x, None, scaling=0.5, softcap=2.0, sliding_window=7, dropout=0.1, plan="p"
    )
    assert found == (x, None)
    assert seen == [(ScoreRule(0.5, 2.0, 7, 0.1), {"plan": "p"})]
