"""Packing: the one shift, boundaries, and batches that cut nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.text.packing import label_positions, pack, plan_batches
from limbeck.types import Row


def row(ids, spans, name="r"):
    return Row(name, "train", "", "", np.asarray(ids, np.int32), tuple(spans), "test")


def test_labels_are_the_next_tokens_of_the_same_document():
    """Statement 10: shift once."""
    batch = pack([row([10, 11, 12], [(1, 3)]), row([20, 21, 22, 23], [(2, 3), (3, 4)])])
    assert batch.ids_T.tolist() == [10, 11, 12, 20, 21, 22, 23]
    assert batch.positions_T.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert batch.lengths == (3, 4)
    assert batch.rows_N.tolist() == [0, 1, 4, 5]
    assert batch.labels_N.tolist() == [11, 12, 22, 23]
    assert torch.equal(batch.ids_T[batch.rows_N + 1], batch.labels_N)


def test_nothing_supervised_is_an_empty_batch_not_an_error():
    assert pack([row([1, 2], [])]).num_supervised == 0
    with pytest.raises(ValueError, match="empty"):
        pack([])


@given(lengths=st.lists(st.integers(1, 30), max_size=40), limit=st.integers(1, 40), seed=st.integers(0, 9))
def test_plans_hold_every_document_once_and_keep_the_limit(lengths, limit, seed):
    order = np.random.default_rng(seed).permutation(len(lengths)).tolist()
    plan = plan_batches(lengths, limit, order=order)
    assert [index for batch in plan for index in batch] == order
    for batch in plan:
        assert batch and (len(batch) == 1 or sum(lengths[i] for i in batch) <= limit)


def test_label_positions_follow_the_spans():
    assert label_positions(row(range(9), [(1, 3), (5, 6)])).tolist() == [1, 2, 5]
