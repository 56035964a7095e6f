"""Contents in all the forms in which servers write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import DataError
from limbeck.text.content import BESIDE, spoken

TEXT = {"type": "text", "text": "a bird"}


@pytest.mark.parametrize("content", [
    "a bird", ["a", " bird"], [TEXT], TEXT, [{"text": "a bird"}], [{"type": "output_text", "text": "a bird"}],
    [{"type": "text", "text": "a "}, {"type": "text", "text": "bird"}],
])  # fmt: skip
def test_words(content):
    assert spoken({"content": content}) == ("a bird", "", "")


@pytest.mark.parametrize("part", [
    {"type": "thinking", "thinking": "hm"}, {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
    {"type": "reasoning", "reasoning": "hm"}, {"type": "reasoning", "text": "hm"}, {"text": "hm", "thought": True},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
])  # fmt: skip
def test_reasoning_among_the_parts_or_beside_them(part):
    assert spoken({"content": [part, TEXT]}) == ("a bird", "hm", "")
    for name in BESIDE:
        for told in ("hm", [part], {"text": "hm"}):
            assert spoken({"content": "a bird", name: told}) == ("a bird", "hm", "")


def test_none_and_refusals():
    assert [spoken({"content": none}).text for none in (None, "", [])] == ["", "", ""] and spoken({}).text == ""
    assert spoken({"content": None, "refusal": "no"}) == ("", "", "no")
    assert spoken({"content": [{"type": "refusal", "refusal": "no"}]}) == ("", "", "no")


@pytest.mark.parametrize(("content", "name"), [
    ([{"type": "image_url"}], "'image_url'"), (7, "int"), ([7], "list"), ([{"type": "text"}], "'text'"), (True, "bool"),
])  # fmt: skip
def test_what_is_no_text_is_told_by_its_name(content, name):
    with pytest.raises(DataError, match=name):
        spoken({"content": content})


NAMES = st.sampled_from(["content", "type", "text", "thinking", "refusal", "reasoning", "summary", "thought"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["text", "thinking", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=15,
)


@given(st.dictionaries(NAMES, VALUES))
def test_anything_is_words_or_an_error_of_ours(message):
    try:
        assert all(isinstance(words, str) for words in spoken(message))
    except DataError:
        return
