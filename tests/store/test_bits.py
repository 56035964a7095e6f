"""Fields of any width, sets of ids and small counts, of several records at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.store.bits import PAD, IdClasses, Streams, count_bits, field_bits, set_bits


def streams(records, sizes):
    """Cursor over records that are given as arrays of bits."""
    packed = [np.packbits(bits, bitorder="little") for bits in records]
    at = 8 * np.cumsum([0, *(len(each) for each in packed)])[:-1]
    return Streams(np.concatenate([*packed, np.zeros(PAD, np.uint8)]), at, np.array(sizes))


@given(width=st.integers(1, 31), records=st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=20), min_size=1))
@settings(deadline=None)
def test_fields_round_trip(width, records):
    values = [np.array([v & ((1 << width) - 1) for v in record], dtype=np.int64) for record in records]
    cursor = streams([field_bits(each, width) for each in values], [len(each) for each in values])
    got = cursor.numbers(np.array([len(each) for each in values]), width)
    assert np.array_equal(got, np.concatenate(values))


@given(records=st.lists(st.lists(st.integers(1, 5000), max_size=20), min_size=1, max_size=4))
@settings(deadline=None)
def test_counts_round_trip(records):
    values = [np.array(record, dtype=np.int64) for record in records]
    cursor = streams([count_bits(each) for each in values], [1] * len(values))
    assert np.array_equal(cursor.counts(np.array([len(each) for each in values])), np.concatenate(values))


@given(
    vocab=st.sampled_from([1, 2, 9, 300, 49152, 262144]),
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_sets_round_trip(vocab, sizes, seed):
    rng = np.random.default_rng(seed)
    classes, bits, others, want = IdClasses.of(vocab), [], [], []
    labels = [rng.integers(0, vocab, n) for n in sizes]
    for gold in labels:
        chosen = []
        for label in gold:
            ids = set((vocab * rng.random(rng.integers(0, 9)) ** 3).astype(int).tolist())
            ids |= {int(label)} if rng.random() < 0.5 else set()
            chosen.append(sorted(ids, key=lambda i: (i != label, i)))
        rows = np.repeat(np.arange(len(gold)), [len(ids) for ids in chosen])
        flat = np.array([i for ids in chosen for i in ids], dtype=np.int64)
        more, other = set_bits(rows, flat, gold, classes)
        bits.append(more), others.append(other)
        want += chosen
    got = streams(bits, sizes).sets(np.array(others), np.concatenate(labels), classes)
    assert got.sizes.tolist() == [len(ids) for ids in want]
    assert got.ids.tolist() == [i for ids in want for i in ids]


@pytest.mark.parametrize("vocab", [1, 7, 8, 9, 43688, 43689, 49152, 262144, 2**20])
def test_every_id_has_a_class(vocab):
    classes = IdClasses.of(vocab)
    ids = np.array([0, vocab // 2, vocab - 1])
    which = np.searchsorted(classes.edges, ids, side="right") - 1
    assert (ids - classes.edges[which] < 1 << classes.widths[which]).all()
