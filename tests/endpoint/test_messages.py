import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.endpoint.messages import Alternative, ApiChoice, ApiReply, ApiToken, answer_from_json, answer_to_json

FLOATS = st.floats(max_value=0.0, allow_nan=False, allow_infinity=False)
SPELLINGS = st.tuples(st.text(), st.none() | st.binary(), st.none() | st.integers(0, 2**20), FLOATS)
OWN = SPELLINGS.map(lambda s: (s[0], s[0].encode(), s[2], s[3]))
ALTERNATIVES = (SPELLINGS | OWN).map(lambda s: Alternative(*s))
TOKENS = st.tuples(SPELLINGS | OWN, st.lists(ALTERNATIVES, max_size=3)).map(lambda t: ApiToken(*t[0], tuple(t[1])))
CHOICES = st.builds(
    ApiChoice, st.text(), st.sampled_from(["stop", "length"]), st.none() | st.lists(TOKENS).map(tuple), st.text()
)
ANSWERS = st.builds(
    ApiReply,
    st.lists(CHOICES, max_size=3).map(tuple),
    st.text(),
    st.text(),
    st.none() | st.integers(0, 10**6),
    st.none() | st.integers(0, 10**6),
    st.floats(0, 1e4),
)


@pytest.mark.slow
@given(ANSWERS)
def test_an_answer_survives_its_json_form(answer: ApiReply) -> None:
    assert answer_from_json(json.loads(json.dumps(answer_to_json(answer)))) == answer


def test_bytes_that_are_the_text_cost_nothing() -> None:
    token = ApiToken(" the", b" the", 278, -0.25, (Alternative("�", b"\xe2\x82", None, -2.0),))
    answer = ApiReply((ApiChoice(" the", "stop", (token,)),), "m", "", 3, 1, 0.5)
    line = json.dumps(answer_to_json(answer))
    assert '[" the", true, 278, -0.25' in line and '"e282"' in line
