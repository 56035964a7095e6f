# ruff: noqa: RUF001 (characters that people write)
"""Where answers stand, when they are the same, and what is no answer at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.curate.answers import compare_exactly, compare_numbers, find_answer, folded, without_thinking
from limbeck.recipe import Exact, Numeric


@pytest.mark.parametrize(
    ("reply", "left"),
    [
        ("<think>4</think> 5 ", "5"),
        ("4", "4"),
        ("a<think>b</think>c<think>d</think>e", "e"),
        ("<think>never ended", ""),
        ("reasoning that was opened by the template</think>6", "6"),
    ],
)
def test_reasoning_is_no_answer(reply, left):
    assert without_thinking(reply) == left


@pytest.mark.parametrize(
    ("where", "reply", "answer"),
    [
        ("whole", " 5 ", "5"),
        ("last_line", "so\n\n five \n", "five"),
        ("last_number", "1 and 2, then 3,000.5.", "3,000.5"),
        ("last_number", "none", None),
        ("boxed", r"\boxed{1} or \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("boxed", r"\boxed{1", None),
        ("marker", "a #### b #### 7", "7"),
        ("marker", "7", None),
        ("marker", "#### Paris\n\nI hope that this helps!", "Paris"),
        ("marker", "####\n\n  42 \nmore", "42"),
        ("marker", "####", ""),
        ("last_number", "so x = 3, or (2, 3).", "(2, 3)"),
    ],
)
def test_where_the_answer_stands(where, reply, answer):
    assert find_answer(reply, where, "####") == answer


# ---- numbers against references --------------------------------------------------------------------------------------


PROSE, BOXED, MARKED = Numeric(), Numeric(answer="boxed"), Numeric(answer="marker")
RIGHT, WRONG, UNKNOWN = True, False, None
NUMERIC = [
    # GSM8K asks for percentages, and its answers are plain numbers.
    (PROSE, "So 60% of the students dance.", "100-20-20=60. #### 60", RIGHT),
    (PROSE, "So 60% of the students dance.", "0.6", RIGHT),
    (PROSE, "60 percent", "60%", RIGHT),
    (PROSE, "60 per cent of them", "0.6", RIGHT),
    (PROSE, "That is 0.6.", "60 %", RIGHT),
    (PROSE, "6%", "60", WRONG),
    (PROSE, "60%", "6%", WRONG),
    (BOXED, r"\boxed{60\%}", "60", RIGHT),
    (PROSE, "It costs 5 million.", "5,000,000", RIGHT),
    (PROSE, "It costs 5 million.", "5", RIGHT),
    (PROSE, "It costs 5 million.", "5 thousand", WRONG),
    # fractions, powers, roots, tuples, intervals, sets
    (BOXED, r"\boxed{\frac{1}{2}}", "2", WRONG),
    (BOXED, r"\boxed{\frac{1}{2}}", "0.5", RIGHT),
    (BOXED, r"\boxed{-\dfrac{3}{4}}", "-0.75", RIGHT),
    (BOXED, r"\boxed{2\tfrac12}", "2.5", RIGHT),
    (BOXED, r"\boxed{3\sqrt{2}}", "2", WRONG),
    (BOXED, r"\boxed{3\sqrt{2}}", "4.2426407", RIGHT),
    (BOXED, r"\boxed{10^{3}}", "1000", RIGHT),
    (BOXED, r"\boxed{(2, 3)}", "3", WRONG),
    (BOXED, r"\boxed{[0, 5)}", "5", WRONG),
    (BOXED, r"\boxed{\{1, 2\}}", "2", WRONG),
    (BOXED, r"\boxed{x^2}", "2", WRONG),
    (BOXED, r"\boxed{2x + 3}", "3", WRONG),
    (BOXED, r"\boxed{x = 3}", "3", RIGHT),
    (BOXED, r"\boxed{2 \text{ or } 3}", "3", WRONG),
    (BOXED, r"\boxed{5\text{ m}^2}", "5", RIGHT),
    (BOXED, r"\boxed{90^\circ}", "90", RIGHT),
    (PROSE, "The answer is (2, 3).", "3", UNKNOWN),
    (PROSE, "The answers are 2 and 3.", "3", UNKNOWN),
    (PROSE, "It is x^2", "2", UNKNOWN),
    (PROSE, "between 5-7", "7", UNKNOWN),
    (PROSE, "at 5:30", "30", UNKNOWN),
    (PROSE, "on 2020-05-06", "6", UNKNOWN),
    (PROSE, "version 3.2.1", "1", UNKNOWN),
    (PROSE, "nothing", "1", WRONG),
    # signs and spaces
    (PROSE, "It is \u22125.", "-5", RIGHT),
    (PROSE, "It is 5.", "\u22125", WRONG),
    (PROSE, "It is -$5.", "\u2212$5.00", RIGHT),
    (PROSE, "COVID-19", "-19", WRONG),
    (PROSE, "The answer is $18.", r"\$18.00", RIGHT),
    # text behind the marker
    (MARKED, "so #### 42 apples", "42", RIGHT),
    (MARKED, "#### 42\n\nI checked it 3 times.", "42", RIGHT),
    (MARKED, "#### 42, as 6 times 7", "42", RIGHT),
    (MARKED, "#### 42, as 6 times 7", "7", WRONG),
    (MARKED, "#### (4, 2)", "2", WRONG),
    (MARKED, "42", "42", WRONG),
]


@pytest.mark.parametrize(("verifier", "reply", "reference", "ok"), NUMERIC)
def test_numbers_are_compared_as_a_whole_or_not_at_all(verifier, reply, reference, ok):
    assert compare_numbers(verifier, reply, reference).ok is ok, compare_numbers(verifier, reply, reference)


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_numbers_are_the_same_where_they_are(number, other):
    assert compare_numbers(PROSE, f"It is {number:,} apples.", str(number)).ok is True
    assert compare_numbers(PROSE, f"It is {number}.", str(other)).ok is (number == other or _close(number, other))


def _close(number: int, other: int) -> bool:
    return abs(number - other) <= 1e-6 * max(abs(other), 1)


# ---- letter by letter ------------------------------------------------------------------------------------------------


FOLDED = [
    ("Paris!", "paris", True), ("**Paris**", "Paris.", True), ("“Paris”", "PARIS", True), ("- Paris", "Paris", True),
    ("well-known", "well known", True), ("Paris (France)", "paris, france", True), ("`x`", "x", True),
    ("New  York,\nUSA", "new york usa", True), ("STRASSE", "stra\u00dfe", True), ("caf\u00e9", "cafe\u0301", True),
    ("\u22125", "-5", True), ("3.5.", "3.5", True), ("-5", "5", False), ("x<y", "x>y", False), ("C++", "C#", False),
    ("x-y", "x y", False), ("x - y", "x + y", False), ("3.5", "35", False), ("[0,5)", "(0,5]", False),
    ("(a+b)*c", "a+b*c", False), ("5!", "5", False), ("a*b", "ab", False), ("5%", "5", False), ("a/b", "ab", False),
    ("$5", "£5", False), ("x\u00b2", "x2", False), ("a = b", "a b", False), ("...", "!!!", False), ("...", "", False),
    ("¬p", "p", False), ("p∧q", "p∨q", False), ("f'(x) = 2", "f(x) = 2", False),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other", "same"), FOLDED)
def test_folding_keeps_what_means_something(one, other, same):
    assert (folded(one) == folded(other)) is same, (folded(one), folded(other))


@given(st.text(max_size=40))
def test_folding_is_settled_at_once_and_never_loses_everything(text):
    assert folded(folded(text)) == folded(text)
    assert bool(folded(text)) is bool(text.split())


def test_exact():
    pairs = [("Paris.", "paris"), ("Paris", "Paris"), ("in Paris", "Paris")]
    assert [compare_exactly(Exact(), *pair).ok for pair in pairs] == [False, True, False]
    assert [compare_exactly(Exact(normalize=True), *pair).ok for pair in pairs] == [True, True, False]
