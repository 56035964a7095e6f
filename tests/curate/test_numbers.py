# ruff: noqa: E501, RUF001 (tables, and characters that people write)
"""Every number comes back from every way in which people write it, and nothing else is one."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.curate.numbers import Reading, first_number, last_number, read_number, to_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234.5", Fraction(2469, 2)), ("-3/4", Fraction(-3, 4)), ("12 %", Fraction(12, 100)), ("$3.50", Fraction(7, 2)),
        ("1e3", Fraction(1000)), ("1e999999999", None), ("9" * 500, None), ("1/0", None), ("five", None), ("", None),
        (r"\frac{\sqrt{4}}{2}", Fraction(1)), (r"\frac{1}{\frac{1}{2}}", Fraction(2)), ("2½", Fraction(5, 2)),
        ("10³", Fraction(1000)), ("2**10", Fraction(1024)), ("10^10^10", None), ("9^99999", None), ("0^-1", None),
        ("1,00,000", Fraction(100000)), ("1_000", Fraction(1000)), ("60 km/h", Fraction(60)), ("5 m/s^2", Fraction(5)),
        ("10,5", None), ("1.000,50", None), ("4x", None), ("±5", None), ("x<5", None), ("1/2/2020", None), ("٣", Fraction(3)),
        ("１２", Fraction(12)), ("6.02 x 10^-3", Fraction(602, 10**5)), (r"6 \times 10^{2}", Fraction(600)), ("3x3", None),
        ("√4", Fraction(2)), (r"\sqrt[3]{8}", None), (r"\infty", None), ("5'10", None), ("10k", Fraction(10000)),
        ("5 per cent", Fraction(1, 20)), ("H2O", None), ("x_1", None), ("(5)", Fraction(5)), ("**18**", Fraction(18)),
    ],
)  # fmt: skip
def test_numbers_as_people_write_them(text, number):
    assert to_number(text) == number


@given(st.fractions(max_denominator=10**6))
def test_every_fraction_is_read(number):
    assert to_number(str(number)) == number
    tex = f"\\frac{{{abs(number.numerator)}}}{{{number.denominator}}}"
    assert to_number(f"-{tex}" if number < 0 else tex) == number


APART = [",", " ", "\u00a0", "\u202f", "\u2009", "'", "\u2019", "_", "\\,", "{,}", ",\\!", "\\ ", "~"]
SIGNS = ["-", "\u2212", "\u2013", "\uff0d"]
UNITS = ["", " apples", " km/h", " cm^2", " m²", r"\text{ m}^2", " dollars", "kg", "°", r"^\circ", " a day", "."]
AROUND = ["{}", "${}$", r"\({}\)", "**{}**", "`{}`", "x = {}", r"\boxed{{{}}}", " {} ", "({})", r"\text{{{}}}"]


@given(
    st.integers(0, 10**12), st.sampled_from(APART), st.sampled_from(["", *SIGNS]), st.sampled_from(UNITS),
    st.sampled_from(AROUND),
)  # fmt: skip
def test_every_form_of_a_whole_number_is_read(number, apart, sign, unit, around):
    """One sign, one way to part thousands, one unit, one way to set it apart: in every combination."""
    text = around.format(
        sign + f"{number:,}".replace(",", apart) + ("" if "text" in around and "text" in unit else unit)
    )
    assert to_number(text) == (-number if sign else number), text


@given(st.integers(0, 999), st.integers(1, 99), st.integers(2, 99), st.booleans())
def test_mixed_numbers(whole, top, bottom, tex):
    text = f"{whole}\\frac{{{top}}}{{{bottom}}}" if tex else f"{whole} {top}/{bottom}"
    assert to_number(text) == whole + Fraction(top, bottom)


@given(st.decimals(-(10**9), 10**9, places=3), st.integers(-20, 20))
def test_powers_of_ten(number, exponent):
    value = Fraction(number) * Fraction(10) ** exponent
    for text in (f"{number}e{exponent}", f"{number} \\times 10^{{{exponent}}}", f"{number} x 10^{exponent}"):
        assert to_number(text) == value


@given(
    st.integers(0, 10**6), st.sampled_from(["The answer is {}.", "so {}", "{} apples", "= {}", "it is ${}.", "**{}**!"])
)
def test_the_last_number_of_prose(number, form):
    found = last_number(f"First 17, then 4 x^2. {form.format(number)}")
    assert found is not None and found.reading == Reading(Fraction(number)), found


@given(
    st.lists(st.integers(0, 99), min_size=2, max_size=5), st.sampled_from(["({})", "[{}]", r"\{{{}\}}", "[{})", "({}]"])
)
def test_no_member_of_a_tuple_interval_or_set_is_a_number(numbers, form):
    text = form.format(", ".join(map(str, numbers)))
    assert read_number(text) is None
    for found in (last_number(f"The answer is {text}."), first_number(text)):
        assert found is not None and found.reading is None


@given(st.text(alphabet="0123456789.,'-+*/^()[]{}\\ $%xab=:√½²\n", max_size=40))
def test_any_text_is_read_or_refused(text):
    read_number(text)
    for found in (last_number(text), first_number(text)):
        assert found is None or found.text


@pytest.mark.parametrize(
    "part",
    ["1,", "12,", "(", "1 ", "{", r"\frac{", r"\text{", "1^", "-", "√", "1/", "a", "* ", "[1,", "1'", "\\", "1 000 "],
)
def test_long_texts_take_no_longer_than_their_length(part):
    begun = time.process_time()
    last_number(part * (20_000 // len(part)))
    assert time.process_time() - begun < 2.0
