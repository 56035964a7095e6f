"""One vocabulary for the ends of replies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.text.finish import UNKNOWN, WORDS, finish_reason, is_understood


@pytest.mark.parametrize("reason", WORDS)
def test_every_word_in_any_spelling(reason):
    assert finish_reason(reason) == reason
    for word in WORDS[reason].split():
        spellings = (word, word.upper(), word.title().replace("_", ""), word.replace("_", "-"), f" {word} ")
        assert {finish_reason(one) for one in (*spellings, f"FINISH_REASON_{word.upper()}")} == {reason}


def test_no_word_has_two_meanings():
    words = [word.replace("_", "") for each in WORDS.values() for word in each.split()]
    assert sorted({word for word in words if words.count(word) > 1}) == []


def test_what_is_no_word_of_ours_keeps_its_name():
    assert finish_reason("paused_for_tea") == "paused_for_tea" and not is_understood("paused_for_tea")
    assert finish_reason({"type": "length", "length": 8}) == "length"
    assert finish_reason("content_filter: PROHIBITED_CONTENT") == "content_filter"
    assert [finish_reason(none) for none in (None, "", " ", "null", {}, {"type": None})] == [UNKNOWN] * 6
    assert finish_reason(7) == "7" and not is_understood(UNKNOWN)


@given(
    st.none()
    | st.text()
    | st.integers()
    | st.floats()
    | st.lists(st.text())
    | st.dictionaries(st.just("type"), st.text())
)
def test_anything_has_a_reason_that_reads_the_same_again(told):
    reason = finish_reason(told)
    assert reason and finish_reason(reason) == reason
