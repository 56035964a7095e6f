"""Text of strangers is shown, and steers nothing."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from limbeck.text.visible import LINES, shortened, visible

STEERING = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


@given(st.text(st.characters()))
def test_nothing_steers_what_shows_it(text):
    for keep in ("", LINES):
        for char in visible(text, keep=keep):
            assert char in keep or char in "\u200c\u200d" or unicodedata.category(char) not in STEERING, repr(char)


def test_what_could_steer_a_page_or_terminal_is_spelt_out():
    assert visible("\x1b[31mred\x1b[0m\x07") == r"\x1b[31mred\x1b[0m\x07"
    assert visible("a\u202eb\u2066c\u200f\u2028") == r"a\u202eb\u2066c\u200f\u2028"
    assert visible("\x00\x9b\ud800\U000e0041") == r"\x00\x9b\ud800\U000e0041"
    assert visible("line\n\r\tnext") == r"line\n\r\tnext"
    assert visible("line\n\r\tnext", keep=LINES) == "line\n\\r\tnext"
    assert visible("مرحبا שלום 👩\u200d💻 नमस्ते un\u00a0mot") == "مرحبا שלום 👩\u200d💻 नमस्ते un\u00a0mot"


def test_long_text_is_cut_and_says_so():
    assert visible("x" * 1_000_000, 10) == "xxxxxxxxxx … [999,990 more characters]"
    assert visible("x" * 1_000_000 + "end", 3, end=True) == "[1,000,000 characters before] … end"
    assert visible("short", 10) == visible("short", 5) == visible("short", 10, end=True) == visible("short", end=True)
    assert visible("short") == "short"
    assert shortened("  two\n words\x1b ", 40) == r"two words\x1b"
    assert shortened("abcdefgh", 4) == "abc…"
