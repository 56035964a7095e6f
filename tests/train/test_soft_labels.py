"""Votes through the store and the distiller: loss and gradient of the distinct replies are those of all of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from limbeck.losses.chunked import Terms, fused_terms
from limbeck.losses.votes import tally
from limbeck.models.hf import head_of, packed_attention, packed_hidden
from limbeck.store import Codec
from limbeck.text.packing import labels_of, pack
from limbeck.train import sources
from limbeck.train.position_weights import trace_weigher
from limbeck.types import Trace

N = 8
HASH = "0123456789abcdef"


def trace(ids, prompt, weight):
    spans = ((len(prompt), len(ids)),)
    return Trace("t", "r", "train", "", "", np.asarray(ids, np.int32), spans, "lm", "tok", HASH, {"weight": weight})


@pytest.fixture
def sampled():
    """Three prompts, eight replies each: some equal, some sharing a prefix, some cut off within another."""
    draw = np.random.default_rng(3)
    out = []
    for number in range(3):
        prompt = draw.integers(3, 384, 4 + number)
        replies = [draw.integers(40, 42, draw.integers(1, 5)) for _ in range(N - 2)]
        replies += [np.array([40, 41, 40, 2]), np.array([40, 41, 40, 2])]
        out.append((prompt, replies))
    assert any(len({tuple(r) for r in replies}) < N - 1 for _, replies in out)
    return out


def gradients(model, batch, terms):
    """In double precision: (value, positions, gradient of every parameter)."""
    model.zero_grad()
    with packed_attention(model):
        hidden_ND = packed_hidden(model, batch)
    labels, weights = batch.labels_N, batch.weights_N
    out = fused_terms(hidden_ND, head_of(model), batch.target, terms, labels_N=labels, weights_N=weights)
    out.loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return out.loss.detach().double().item(), out.num, grads


def through_codec(ballots):
    codec, rounding = Codec(384, 0, N, "votes"), np.random.default_rng(0)
    records = [codec.encode(ballot.support, labels_of(item), HASH, rounding) for ballot, item in ballots]
    pairs = [(np.frombuffer(r, np.uint8), labels_of(item)) for r, (_, item) in zip(records, ballots, strict=True)]
    return codec.decode(pairs)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_distinct_replies_with_shares_are_all_replies(tiny_model, sampled, family):
    """Value and gradient of every parameter, but for what single precision of shares and weights rounds off."""
    everything = [trace([*p, *r], p, 1.0) for p, replies in sampled for r in replies]
    ballots = [(b, trace([*p, *b.ids], p, b.share)) for p, replies in sampled for b in tally(replies)]
    assert len(ballots) < len(everything)
    model = tiny_model(family).double()
    value, num, grads = gradients(model, pack(everything), Terms(ce_weight=1.0))

    items = [item for _, item in ballots]
    dist = through_codec(ballots)
    batch = sources.weighted(lambda _: pack(items, dist), trace_weigher(items))(items)
    soft, soft_num, soft_grads = gradients(model, batch, Terms(ce_weight=0.0))
    shares = dist.logp_NK.double().exp()
    entropy = -torch.special.xlogy(shares, shares).sum(1)  # of the votes: what KL leaves out of cross-entropy
    soft += float((batch.weights_N.double() * entropy).sum())
    assert soft / soft_num == pytest.approx(value / num, rel=2e-6)  # a step divides by the number of positions
    same(soft_grads, soft_num, grads, num)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_labels_with_shares_are_all_replies(tiny_model, sampled, family):
    """The twin, and a student of hard labels: the same sum again, since the shares are only another order of it."""
    everything = [trace([*p, *r], p, 1.0) for p, replies in sampled for r in replies]
    items = [trace([*p, *b.ids], p, b.share) for p, replies in sampled for b in tally(replies)]
    model = tiny_model(family).double()
    value, num, grads = gradients(model, pack(everything), Terms(ce_weight=1.0))
    packed = sources.weighted(pack, trace_weigher(items))
    hard, hard_num, hard_grads = gradients(model, packed(items), Terms(ce_weight=1.0))
    assert hard / hard_num == pytest.approx(value / num, rel=2e-6)
    same(hard_grads, hard_num, grads, num)


def same(grads, num, wanted, wanted_num):
    assert grads.keys() == wanted.keys()
    for name in wanted:
        largest = (wanted[name] / wanted_num).abs().max().clamp_min(1e-12)
        assert float((grads[name] / num - wanted[name] / wanted_num).abs().max() / largest) < 2e-6, name


def test_weights_have_mean_one_and_multiply():
    items = [trace([1, 2, 3, 4], [1], 0.75), trace([1, 2], [1], 0.25)]
    weigh = trace_weigher(items)
    assert weigh(items) == pytest.approx([1.2, 1.2, 1.2, 0.4])
    assert trace_weigher(items[:1]) is None
    assert trace_weigher([replace(item, meta={}) for item in items]) is None
    twice = sources.weighted(sources.weighted(pack, weigh), lambda _: 2 * weigh(items))
    assert twice(items).weights_N.tolist() == pytest.approx([2.88, 2.88, 2.88, 0.32])
