"""`trace`: what its kinds say of themselves, so that nobody asks for their class."""

from __future__ import annotations

import pytest

from limbeck.recipe import GenerateMode, Hybrid, Live, Sampled, ScoreMode, TargetSettings, TextTarget, TopK, Votes


@pytest.mark.parametrize(
    ("target", "is_stored", "is_live", "offers"),
    [
        (TopK(), True, False, "cells"),
        (TopK(tail="gold"), True, False, "sample"),
        (Sampled(), True, False, "sample"),
        (Hybrid(), True, False, "sample"),
        (Votes(), True, False, "sample"),
        (Live(), False, True, "full"),
        (TextTarget(), False, False, "sample"),
    ],
)
def test_a_target_says_whether_it_is_stored_and_what_it_offers(
    target: TargetSettings, is_stored: bool, is_live: bool, offers: str
):
    assert (target.is_stored, target.is_live, target.offers) == (is_stored, is_live, offers)
    assert not {"is_stored", "is_live", "offers"} & set(target.model_dump()), "fingerprints would change"


def test_a_mode_says_what_is_written():
    given, written = ScoreMode(), GenerateMode(n=3, max_tokens=7)
    assert (given.generates, given.num_replies, given.max_reply) == (False, 1, 0)
    assert (written.generates, written.num_replies, written.max_reply) == (True, 3, 7)
    assert given.identity == {"kind": "score"}
    assert "think" not in written.identity and "enough" not in written.identity
