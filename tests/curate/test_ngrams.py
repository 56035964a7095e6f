"""Words of every script, and runs of them as numbers."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.curate.ngrams import runs, words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It's 5, not FIVE!", ["it", "s", "5", "not", "five"]),
        ("日本語のtext、です。", ["日", "本", "語", "の", "text", "で", "す"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("हिन्दी में लिखा।", ["हिन्दी", "में", "लिखा"]),  # vowel signs part no words
        ("שָׁלוֹם עולם", ["שָׁלוֹם", "עולם"]),
        ("مُحَمَّد كتب", ["مُحَمَّد", "كتب"]),
        ("5+8 - 2 well-known a - b", ["5", "+", "8", "-", "2", "well", "known", "a", "b"]),
        ("café e\u0301", ["café", "é"]),
        ("Straße ﬁnd ５", ["strasse", "find", "5"]),  # noqa: RUF001
        ("... !?", []),
    ],
)
def test_words(text, found):
    assert words(text) == [unicodedata.normalize("NFKC", word) for word in found]


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 6))
def test_runs_are_equal_where_their_words_are(letters, n):
    numbers = runs(letters, n).tolist()
    plain = [tuple(letters[at : at + n]) for at in range(len(letters) - n + 1)]
    assert len(numbers) == len(plain)
    assert len(set(numbers)) == len(set(plain)) == len(set(zip(numbers, plain, strict=True)))


def test_runs_are_the_same_in_every_process():
    assert runs(["one", "two", "three"], 2).tolist() == [17619704798060293248, 5881316697885657821]
