"""Log-probs of given text, both ways, against the model behind the endpoint; and what is no answer."""

import asyncio
import itertools

import numpy as np
import pytest

from limbeck.endpoint.align import Ends, align
from limbeck.endpoint.client import open_endpoint
from limbeck.endpoint.given import read_given
from limbeck.endpoint.messages import ApiReply, ApiRequest
from limbeck.endpoint.parse import Malformed
from limbeck.endpoint.status import RetryLater
from tests.endpoint.bigram import TABLE, TOKENIZER, Endpoint, Manners, bigram, teacher_at
from tests.endpoint.fake_server import FakeServer

TEXT = "Note 3: The cook salted the onion soup."
IDS = tuple(TOKENIZER(TEXT, add_special_tokens=False)["input_ids"])


def ask(manners, *asks):
    served = Endpoint(manners)

    async def go(url):
        async with open_endpoint(teacher_at(url)) as endpoint:
            return [await endpoint.ask(one) for one in asks]

    with FakeServer(served.answer) as at:
        return asyncio.run(go(at.url)), served


@pytest.mark.parametrize("more", [{}, {"echo": True}])
def test_supports_of_given_text_are_the_models_own(more):
    (answer,), served = ask(Manners(), ApiRequest(given=IDS, first=4, logprobs=6, **more))
    assert isinstance(answer, ApiReply) and answer.choices[0].finish_reason == "scored"
    assert served.bodies[0]["max_tokens"] == 1 and answer.prompt_tokens == len(IDS)
    found = align(answer.choices[0].tokens, TABLE, Ends((2,), True))
    assert tuple(found.ids) == IDS[4:]
    logits = bigram()
    for n, (before, own) in enumerate(itertools.pairwise(IDS[3:])):
        p = np.exp(logits[before] - logits[before].max())
        p /= p.sum()
        support = zip(found.support.head_ids_nH[n].tolist(), found.support.head_p_nH[n].tolist(), strict=True)
        cells = {index: mass for index, mass in support if index >= 0}
        assert own in cells and len(cells) >= 6 - ("echo" in more) * 3  # halves of characters are nobody's
        assert cells == pytest.approx({index: p[index] for index in cells}, rel=1e-5)
        assert float(found.support.tail_n[n]) == pytest.approx(1 - sum(p[index] for index in cells), abs=1e-6)


@pytest.mark.parametrize(
    ("manners", "more"), [(Manners(prompt_logprobs=False), {}), (Manners(echo=False), {"echo": True})]
)
def test_text_whose_log_probs_are_ignored_is_no_answer(manners, more):
    (answer,), _ = ask(manners, ApiRequest(given=IDS, logprobs=3, **more))
    assert isinstance(answer, RetryLater) and answer.trouble == "malformed"


def prompted(*rows):
    return {"choices": [{"prompt_logprobs": list(rows)}]}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"choices": [{}, {}]},
        prompted(None),
        prompted(None, None),
        prompted(None, {"5": {"logprob": -1.0}}),
        prompted(None, {"x": {"logprob": -1.0}}),
        prompted(None, {"4": {"logprob": 1.0}}),
        prompted(None, {"4": {"logprob": "-1"}}),
    ],
)
def test_malformed_prompt_logprobs(body):
    with pytest.raises(Malformed):
        read_given(body, ApiRequest(given=(3, 4), logprobs=1), 0.0)


@pytest.mark.parametrize(
    "logprobs",
    [
        {"tokens": ["a"], "token_logprobs": [None], "top_logprobs": [None]},
        {"tokens": ["a", "b"], "token_logprobs": [None], "top_logprobs": [None, {}]},
        {"tokens": ["a", 3], "token_logprobs": [None, -1.0], "top_logprobs": [None, {}]},
        {"tokens": ["a", "b"], "token_logprobs": [None, None], "top_logprobs": [None, {}]},
    ],
)
def test_malformed_echoes(logprobs):
    with pytest.raises(Malformed):
        read_given({"choices": [{"logprobs": logprobs}]}, ApiRequest(given=(3, 4), logprobs=1, echo=True), 0.0)


def test_echoed_ids_are_exact():
    logprobs = {"tokens": ["token_id:3", "token_id:4"], "token_logprobs": [None, -1.5]}
    logprobs["top_logprobs"] = [None, {"token_id:4": -1.5, "token_id:7": -0.5}]
    answer = read_given({"choices": [{"logprobs": logprobs}]}, ApiRequest(given=(3, 4), logprobs=1, echo=True), 0.0)
    (token,) = answer.choices[0].tokens
    assert (token.id, token.logp, [(one.id, one.logp) for one in token.top]) == (4, -1.5, [(7, -0.5)])
