"""Codec: round trips, exact sums, and quantisation that does not shift the mean."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.losses.support import SupportSpec, select
from limbeck.store.codec import LEVELS, Codec, pack_bits, quantise, unpack_bits

HASH = "0123456789abcdef"


@given(bits=st.integers(1, 24), values=st.lists(st.integers(0, 2**24 - 1), max_size=50))
def test_bits_round_trip(bits, values):
    array = np.array([v & ((1 << bits) - 1) for v in values], dtype=np.int64)
    packed = pack_bits(array, bits)
    assert len(packed) == (len(array) * bits + 7) // 8
    assert np.array_equal(unpack_bits(np.frombuffer(packed, np.uint8), len(array), bits), array)


@given(
    spec=st.sampled_from([SupportSpec(6, 0), SupportSpec(0, 20), SupportSpec(6, 20, 0.01)]),
    vocab=st.sampled_from([5, 300, 49152, 151665]),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    size=st.sampled_from([0.0, 3.0, 30.0]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_decoded_distributions_are_those_selected(spec, vocab, sizes, size, seed):
    g, rounding = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    spec = SupportSpec(min(spec.head, vocab), spec.draws, spec.min_prob)
    codec = Codec(vocab, spec.head, spec.draws)
    supports = [select(torch.randn(n, vocab, generator=g) * size, spec, 1.0, g) for n in sizes]
    records = [codec.encode(support, HASH, rounding) for support in supports]
    dist = codec.decode([(np.frombuffer(r, np.uint8), n) for r, n in zip(records, sizes, strict=True)])
    total = dist.logp_NK.double().exp().sum(1) + dist.tail_N.double().exp()
    torch.testing.assert_close(total, torch.ones(sum(sizes)).double(), rtol=1e-5, atol=1e-5)
    row = 0
    for support in supports:
        for n in range(len(support.tail_n)):
            head = [i for i in support.head_ids_nH[n].tolist() if i >= 0]
            drawn = support.draw_ids_Q[support.draw_rows_Q == n].tolist()
            ids = [i for i in dist.ids_NK[row].tolist() if i >= 0]
            assert ids == head + drawn
            p = dist.logp_NK[row, : len(head)].exp()
            want = support.head_p_nH[n][support.head_ids_nH[n] >= 0]
            torch.testing.assert_close(p, want, rtol=0.2, atol=0.02)
            row += 1
    assert (dist.entropy_N is not None) == bool(spec.draws)


def test_quantisation_keeps_the_mean():
    p = np.array([0.93, 0.4, 0.07, 1e-3, 1e-6])
    rounding = np.random.default_rng(0)
    mean = np.mean([LEVELS[quantise(p, rounding)] for _ in range(4000)], axis=0)
    np.testing.assert_allclose(mean, p, rtol=3e-3)


def test_context_hash_comes_first():
    codec = Codec(300, 2, 0)
    support = select(torch.randn(2, 300), SupportSpec(2, 0), 1.0, torch.Generator())
    assert codec.encode(support, HASH, np.random.default_rng(0))[:8].hex() == HASH


@pytest.mark.parametrize(("vocab", "bits"), [(2, 1), (300, 9), (49152, 16), (65536, 16), (151665, 18)])
def test_ids_take_no_more_bits_than_needed(vocab, bits):
    assert Codec(vocab, 1, 1).id_bits == bits
