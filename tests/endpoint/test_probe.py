"""The probe against endpoints of all manners: what is ignored is seen, whatever the status says."""

import asyncio
import json
from dataclasses import replace

import pytest

from limbeck.endpoint.capabilities import Capabilities
from limbeck.endpoint.client import open_endpoint
from limbeck.endpoint.probe import MOST_REQUESTS, MOST_TOKENS, probe
from limbeck.errors import TeacherError
from tests import tiny
from tests.endpoint.bigram import Endpoint, Manners, reader, teacher_at
from tests.endpoint.fake_server import FakeServer
from tests.text.test_token_bytes import sentencepiece


def look(manners, ours=None, **settings):
    """The record, and the endpoint with all that it was asked."""
    served = Endpoint(manners)

    async def ask(url):
        async with open_endpoint(teacher_at(url, **settings)) as endpoint:
            return await probe(endpoint, ours or reader())

    with FakeServer(served.answer) as at:
        return asyncio.run(ask(at.url)), served


def test_an_endpoint_that_honours_everything():
    found, served = look(Manners(ids=True, ends_told=True))
    for name in ("raw", "ends_told", "same_text", "samples", "n", "seed", "stop", "json_schema", "echo"):
        assert getattr(found, name) is True, name
    for name in ("refuses_unknown_model", "token_ids", "completions", "token_prompts", "prompt_logprobs"):
        assert getattr(found, name) is True, name
    assert (found.logprobs, found.tokens, found.prompt) == (20, "agree", "agree")
    assert found.model == "bigram" and found.fingerprints == ("fp-0",) and found.steady
    assert found.spread == pytest.approx(0, abs=1e-12)
    assert found.scores
    assert found.requests == len(served.bodies) <= MOST_REQUESTS
    assert found.prompt_tokens <= MOST_TOKENS[0] and found.completion_tokens <= MOST_TOKENS[1]


@pytest.mark.parametrize(
    ("ignored", "field"),
    [
        ({"n": False}, "n"),
        ({"seed": False}, "seed"),
        ({"stop": False}, "stop"),
        ({"json_schema": False}, "json_schema"),
        ({"knows_its_name": False}, "refuses_unknown_model"),
        ({"echo": False}, "echo"),
        ({"prompt_logprobs": False}, "prompt_logprobs"),
        ({"token_prompts": False}, "token_prompts"),
        ({"completions": False}, "completions"),
        ({"temperature": False}, "samples"),
        ({"tempered": True}, "raw"),
        ({"ends_told": False}, "ends_told"),
        ({"ids": False}, "token_ids"),
    ],
)
def test_what_is_ignored_is_seen(ignored, field):
    """One parameter at a time is ignored with 200 OK; the others are not blamed for it."""
    found, _ = look(replace(Manners(ids=True, ends_told=True), **ignored))
    assert getattr(found, field) is False
    others = {"n", "seed", "stop", "json_schema", "samples", "raw", "token_ids"} - {field}
    if field == "samples":
        others -= {"seed", "raw"}  # nothing is to be seen of them
    assert all(getattr(found, name) for name in others)


def test_log_probs_that_are_ignored_silently():
    found, _ = look(Manners(most_logprobs=0))
    assert found.logprobs == 0 and found.tokens == "unknown"
    assert found.raw is None and found.spread is None and found.ends_told is None
    assert not found.echo and found.steady and found.same_text


def test_fewer_alternatives_are_asked_for_where_many_are_refused():
    found, served = look(Manners(most_logprobs=5))
    assert found.logprobs == 5
    assert [body.get("top_logprobs") for body in served.bodies[:3]] == [20, 20, 5]


def test_unknown_keys_that_are_refused_are_not_sent_again():
    found, served = look(Manners(refuses_unknown_keys=True, ids=True))
    assert found.logprobs == 20 and not found.token_ids and found.tokens == "agree"
    assert sum("return_token_ids" in body for body in served.bodies) == 1


def test_replicas_of_two_models_give_themselves_away():
    found, _ = look(Manners(replicas=(0, 5)))
    assert found.spread > 0.2 and not found.steady
    found, _ = look(Manners(fingerprints=("fp-a", "fp-b")))
    assert found.fingerprints == ("fp-a", "fp-b") and not found.steady


def test_letters_are_in_every_vocabulary():
    """All its tokens have the bytes of ours, and yet they are not ours."""
    found, _ = look(Manners(spelling="letters"))
    assert found.tokens == "differ" and "cuts its replies into" in found.tokens_why
    assert not found.scores


def test_another_vocabulary():
    tokenizer = sentencepiece()
    tokenizer.chat_template = tiny.CHATML
    found, _ = look(Manners(), reader(tokenizer))
    assert found.tokens == "differ" and "no token of this vocabulary" in found.tokens_why
    assert found.prompt == "differ"


def test_raw_prompts():
    found, _ = look(Manners(), endpoint="completions")
    assert found.endpoint == "completions" and found.stop and found.seed and found.raw
    assert 5 <= found.logprobs <= 20  # halves of characters are one and the same text


def test_an_endpoint_that_answers_nothing():
    with pytest.raises(TeacherError, match="does not answer a plain question.*no such model"):
        look(Manners(), extra_body={"model": "other"})


def impossible(logprob):
    """At each position stands a token that cannot be, by this number."""

    def change(choice):
        for token in (choice.get("logprobs") or {}).get("content", []):
            token["top_logprobs"].append({"token": "zz", "logprob": logprob, "bytes": [122, 122]})

    return change


def side_by_side(choice):
    """Chats with log-probs in the shape of plain completions."""
    if tokens := (choice.get("logprobs") or {}).get("content"):
        names, logps = [token["token"] for token in tokens], [token["logprob"] for token in tokens]
        tops = [{one["token"]: one["logprob"] for one in token["top_logprobs"]} for token in tokens]
        choice["logprobs"] = {"tokens": names, "token_logprobs": logps, "top_logprobs": tops}


@pytest.mark.parametrize("change", [impossible(None), impossible(float("-inf")), impossible(-9999.0), side_by_side])
def test_log_probs_in_other_words(change):
    found, _ = look(Manners(change=change))
    assert found.logprobs >= 5 and found.tokens == "agree" and found.raw


def test_log_probs_that_cannot_be_read_are_told_with_their_reason():
    found, _ = look(Manners(change=impossible(float("nan"))))
    assert found.logprobs == 0 and "cannot be read: the log-prob of 'zz' is 'nan'" in found.tokens_why


@pytest.mark.parametrize(("word", "told"), [("eos", ()), ("paused_for_tea", ("paused_for_tea",)), (None, ("none",))])
def test_finish_reasons_that_nobody_knows_are_seen_before_they_are_paid_for(word, told):
    found, _ = look(Manners(change=lambda choice: choice.update(finish_reason=word)))
    assert found.strange_ends == told
    assert found.identity == replace(found, strange_ends=()).identity  # older stores are still the same teacher's


def test_records_of_before_are_still_read():
    found, _ = look(Manners())
    older = json.loads(json.dumps(found.to_json()))
    del older["strange_ends"]
    assert Capabilities.from_json(older) == found


def test_a_network_fault_is_told_by_its_reason(monkeypatch):
    monkeypatch.setattr("limbeck.endpoint.probe.FIRST_WAIT", 0.01)

    async def ask():
        async with open_endpoint(teacher_at("http://127.0.0.1:1/v1")) as endpoint:
            await probe(endpoint, reader())

    with pytest.raises(TeacherError, match="Connect call failed"):
        asyncio.run(ask())


def test_records_are_kept_as_json():
    found, _ = look(Manners())
    again = Capabilities.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found and again.identity == found.identity
    assert replace(found, requests=99, spread=0.01).identity == found.identity
    assert replace(found, logprobs=5).identity != found.identity
    with pytest.raises(TeacherError, match="delete it"):
        Capabilities.from_json({"version": 0})
