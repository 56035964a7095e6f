"""Events in any pieces, with any line ends."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.system.sse import data_of, event, split_events

LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))
PASSED_OVER = st.sampled_from(["", ": note{end}", "event: x{end}", "id: 7{end}:{end}", "database: y{end}"])


@given(
    st.lists(st.tuples(st.lists(LINE, min_size=1, max_size=3), PASSED_OVER), max_size=5),
    st.lists(st.integers(0, 200), max_size=20) | st.just(range(1000)),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
)
def test_events_come_out_as_they_went_in(events, cuts, end, marked):
    """Whatever is cut: a UTF-8 character, a line end, the mark at the beginning."""
    body = "\ufeff" * marked
    for lines, more in events:
        body += "".join(f"data: {line}{end}{more.format(end=end)}" for line in lines) + end
    sent = body.encode()
    edges = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
    found, rest = [], b""
    for start, stop in itertools.pairwise(edges):
        whole, rest = split_events(rest + sent[start:stop])
        found += whole
    assert found == ["\n".join(lines) for lines, _ in events]
    assert data_of(rest) is None


def test_an_event_without_its_blank_line_stays_until_it_is_asked_for():
    found, rest = split_events(b"data: a\ndata:b\n\ndata: [DONE]")
    assert found == ["a\nb"] and data_of(rest) == data_of(rest + b"\r\n") == "[DONE]"
    assert split_events(rest + b"\n\n") == (["[DONE]"], b"")


@pytest.mark.parametrize(
    ("body", "found"),
    [(b"data\n\n\n\n:\n\ndata: \xff\n\n", ["", "\ufffd"]), (b"data:  x \n\n", [" x "]), (b"x\ndata: y\n\n", ["y"])],
)
def test_fields(body, found):
    assert split_events(body) == (found, b"")


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_what_is_written_is_read(value):
    (data,), rest = split_events(event(value))
    assert json.loads(data) == value and not rest
