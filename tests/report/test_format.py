"""Numbers and foreign text."""

import pytest

from limbeck.report.format import number, percent, perplexity, signed, times
from limbeck.text.visible import shortened, visible, visible_end


def test_what_could_steer_a_page_or_terminal_is_spelt_out():
    assert visible("\x1b[31mred\x1b[0m") == "␛[31mred␛[0m"
    assert visible("a\u202eb\u2066c\u200f") == "a[U+202E]b[U+2066]c[U+200F]"
    assert visible("\x00\x9b\ud800") == "␀[U+009B][U+D800]"
    assert visible("line\n\tnext") == "line\n\tnext"
    assert visible("مرحبا שלום 👩\u200d💻 नमस्ते") == "مرحبا שלום 👩\u200d💻 नमस्ते"


def test_long_text_is_cut_and_says_so():
    assert visible("x" * 1_000_000, 10) == "xxxxxxxxxx … [999,990 more characters]"
    assert visible_end("x" * 1_000_000 + "end", 3) == "[1,000,000 characters before] … end"
    assert visible("short", 10) == "short" == visible_end("short", 10)
    assert shortened("  two\n words ", 40) == "two words"
    assert shortened("abcdefgh", 4) == "abc…"


@pytest.mark.parametrize("value", [None, True, "3", [], float("nan"), float("inf"), 1e300, 10**400])
def test_not_numbers(value):
    assert number(value) is None


def test_units():
    assert perplexity(10.314) == "10.31" and perplexity(4.2e9) == "4.2e+09"
    assert percent(0.7124) == "71.2%" and signed(-0.289, 3) == "\u22120.289" and signed(8.21, 1) == "+8.2"
    assert [times(r) for r in (0.5, 1.37, 12.4)] == ["0.50\u00d7", "1.4\u00d7", "12\u00d7"]
