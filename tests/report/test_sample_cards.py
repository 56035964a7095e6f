"""Answers as the page shows them: what counts as agreement, and what does not."""

from hypothesis import given
from hypothesis import strategies as st

from limbeck.report.sample_cards import LONGEST_LOOP, LOOP_PIECES, answer_cards, loop_start

WORDS = [f"w{number}" for number in range(40)]


@given(st.integers(0, 30), st.integers(1, LONGEST_LOOP), st.integers(0, 9), st.integers(0, 5))
def test_a_loop_begins_where_its_words_come_again(before, period, rounds, rest):
    """Different words, then `period` of them again and again; the last time may be cut short."""
    rest = min(rest, period - 1)
    loop = [f"l{number}" for number in range(period)]
    texts = [f"w{number}" for number in range(before)] + loop * (1 + rounds) + loop[:rest]
    again = period * rounds + rest
    is_loop = again >= max(2 * period, LOOP_PIECES)
    assert loop_start(texts) == (before + period if is_loop else len(texts))


@given(st.lists(st.sampled_from("ab"), max_size=60))
def test_what_stands_before_a_loop_is_never_empty(texts):
    assert (loop_start(texts) > 0) == bool(texts)


def card(pieces, *, marked=True):
    entry = {"prompt": "p", "truth": "t", "answers": {"student": {"pieces": pieces, "finish_reason": "length"}}}
    ((column,),) = [each.columns for each in answer_cards([entry], marked=marked)]
    return column


def test_a_loop_that_the_teacher_would_go_on_with_is_not_agreement():
    own = [[word, number < 2, 0.5, "x"] for number, word in enumerate(WORDS[:8])]
    found = card(own + [[" the", True, 1.0, ""]] * 50)
    assert found.loops and found.agreement == "33.3%"  # 2 of 8, and the first of the loop
    assert not card(own).loops and card(own).agreement == "25.0%"


def test_nothing_is_marked_where_no_teacher_read():
    found = card([["a", True, 1.0, ""], ["b", False, 0.0, "c"]], marked=False)
    assert found.agreement == "" and [(run.text, run.mark) for run in found.runs] == [("ab", "same")]
