"""Votes: shares by counting prefixes outright, equal replies once."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.losses.votes import tally

REPLIES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=12)


def votes(support):
    """At each position: token -> votes."""
    out = [Counter() for _ in range(len(support.tail_n))]
    flat = (support.draw_rows_Q.tolist(), support.draw_ids_Q.tolist(), support.draw_counts_Q.tolist())
    for row, token, count in zip(*flat, strict=True):
        out[row][token] += count
    return out


@given(REPLIES)
def test_votes_are_counted_prefixes(replies):
    ballots = tally([np.array(reply) for reply in replies])
    assert sorted(place for ballot in ballots for place in ballot.draws) == list(range(len(replies)))
    assert sum(ballot.share for ballot in ballots) == pytest.approx(1)
    for ballot in ballots:
        reply = ballot.ids.tolist()
        assert all(replies[place] == reply for place in ballot.draws)
        assert ballot.share == len(ballot.draws) / len(replies)
        for position, counted in enumerate(votes(ballot.support)):
            prefix = reply[:position]
            going_on = [r[position] for r in replies if r[:position] == prefix and len(r) > position]
            assert counted == Counter(going_on)
        assert ballot.support.draw_rows_Q.tolist() == sorted(ballot.support.draw_rows_Q.tolist())


def test_order_is_that_of_first_appearance():
    ballots = tally([np.array(r) for r in ([5, 1], [5, 2], [5, 1], [5])])
    assert [b.draws for b in ballots] == [(0, 2), (1,), (3,)]
    assert votes(ballots[0].support) == [Counter({5: 4}), Counter({1: 2, 2: 1})]  # the short one does not go on
    assert ballots[0].ids.dtype == np.int32


def test_an_empty_reply_cannot_vote():
    with pytest.raises(ValueError, match="without any token"):
        tally([np.array([1]), np.array([], dtype=np.int32)])
