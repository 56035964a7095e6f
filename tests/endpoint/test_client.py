"""One request to an endpoint, against a server that does everything wrong: what becomes of each fault."""

import asyncio
import logging
import shutil
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from limbeck.endpoint.client import MATCH, body_of, open_endpoint, read_key, redact
from limbeck.endpoint.messages import ApiReply, ApiRequest
from limbeck.endpoint.retry import ask_all
from limbeck.endpoint.status import RequestRejected, RetryLater, retry_after
from limbeck.errors import MissingExtra, TeacherError
from limbeck.recipe import OpenAITeacher
from limbeck.types import Sampling
from tests.endpoint.fake_answers import FINGERPRINT, MODEL, key_of, reply_of
from tests.endpoint.fake_server import CONNECTION, LOGPROB_FAULTS, MALFORMED, FakeServer, in_turn

CANARY = "sk-canary-5Tq8ZpW3vX"
ASK = ApiRequest(
    ({"role": "user", "content": "name a bird"},), sampling=Sampling(0.7, max_tokens=8), logprobs=2, seed=7
)


@pytest.fixture(scope="module")
def server():
    with FakeServer() as server:
        yield server


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)


def teacher(server: FakeServer | str, **settings) -> OpenAITeacher:
    url = server if isinstance(server, str) else server.url
    return OpenAITeacher(**{"base_url": url, "model": MODEL, "timeout_seconds": 0.4, **settings})


def ask(settings: OpenAITeacher, one: ApiRequest = ASK) -> ApiReply | RetryLater | RequestRejected:
    async def work():
        async with open_endpoint(settings) as endpoint:
            return await endpoint.ask(one)

    return asyncio.run(work())


def ask_with(
    server: FakeServer, fault: str | None, one: ApiRequest = ASK, **settings
) -> ApiReply | RetryLater | RequestRejected:
    server.script = lambda seen: fault
    return ask(teacher(server, **settings), one)


def test_a_good_answer_is_kept_whole(server):
    answer = ask_with(server, None)
    assert isinstance(answer, ApiReply)
    body = body_of(teacher(server), ASK)
    [choice] = answer.choices
    assert choice.text == reply_of(key_of(body)) and choice.finish_reason == "stop"
    assert "".join(token.text for token in choice.tokens) == choice.text
    assert choice.tokens[0].bytes == choice.tokens[0].text.encode() and choice.tokens[0].logp == -0.1
    assert [top.text for top in choice.tokens[1].top] == [choice.tokens[1].text, " x"]
    assert (answer.model, answer.system_fingerprint) == (MODEL, FINGERPRINT)
    assert answer.prompt_tokens > 0 and answer.completion_tokens > 0 and 0 < answer.seconds < 0.4
    assert f"Bearer {CANARY}" in server.keys


def test_completions_are_asked_with_a_raw_prompt(server):
    one = ApiRequest(prompt="The wren is", sampling=Sampling(0.0, n=2, max_tokens=8), logprobs=2, seed=7)
    answer = ask_with(server, None, one)
    assert isinstance(answer, ApiReply) and len(answer.choices) == 2
    assert [token.logp for token in answer.choices[1].tokens][:2] == [-0.1, -0.1]
    assert answer.choices[0].tokens[0].top[1].text == " x"


def test_what_is_sent():
    settings = teacher(
        "http://x/v1", system="be brief", extra_body={"seed": None, "top_k": 3}, max_tokens_key="max_completion_tokens"
    )
    one = ApiRequest(
        ({"role": "user", "content": "?"},), sampling=Sampling(0.5, 0.9, 2, 8, ("\n",)), logprobs=5, seed=1
    )
    assert body_of(settings, one) == {
        "model": MODEL,
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "?"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 2,
        "stop": ["\n"],
        "max_completion_tokens": 8,
        "logprobs": True,
        "top_logprobs": 5,
        "top_k": 3,
    }
    assert body_of(teacher("http://x/v1"), ApiRequest(prompt="?", logprobs=5))["logprobs"] == 5


def test_two_system_messages_become_one():
    """Many templates refuse a second one."""
    settings = teacher("http://x/v1", system="be brief")
    user, parts = {"role": "user", "content": "?"}, [{"type": "text", "text": "of birds"}]

    def sent(*turns):
        return body_of(settings, ApiRequest(turns))["messages"]

    assert sent(user) == [{"role": "system", "content": "be brief"}, user]
    for role in ("system", "developer"):
        first, rest = sent({"role": role, "content": "of birds"}, user)
        assert first == {"role": role, "content": "be brief\n\nof birds"} and rest == user
    both = [{"type": "text", "text": "be brief\n\n"}, *parts]
    assert sent({"role": "system", "content": parts}, user)[0]["content"] == both
    assert sent({"role": "system", "content": None}, user)[0]["content"] == "be brief"
    own = {"role": "system", "content": "of birds"}
    assert body_of(teacher("http://x/v1"), ApiRequest((own, user)))["messages"] == [own, user]


# ---- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", MALFORMED)
def test_what_is_no_answer_is_not_believed(server, fault):
    found = ask_with(server, fault)
    trouble = "server" if fault == "hidden-error" else "malformed"
    assert isinstance(found, RetryLater) and found.trouble == trouble and found.billed
    assert CANARY not in found.reason


@pytest.mark.parametrize("fault", CONNECTION)
def test_broken_connections_and_silence_come_to_an_end(server, fault):
    begun = time.monotonic()
    found = ask_with(server, fault)
    assert isinstance(found, RetryLater) and found.billed
    assert time.monotonic() - begun < 15  # a dripping answer would take over 20 s
    assert found.trouble == {"hang": "timeout", "drip": "timeout"}.get(fault, "reset")


@pytest.mark.parametrize("fault", ["401", "404", "quota", "parameter", "redirect"])
def test_what_every_request_would_meet_ends_the_job(server, fault):
    with pytest.raises(TeacherError) as caught:
        ask_with(server, fault, timeout_seconds=30)
    said = {"quota": "quota or credit", "redirect": "elsewhere.invalid"}.get(fault, "refuses every request")
    assert said in str(caught.value) and MODEL in str(caught.value)
    assert caught.value.exit_code == 4 and caught.value.__cause__ is None


def test_a_refusal_that_may_be_about_one_prompt_leaves_a_doubt(server):
    found = ask_with(server, "403")
    assert isinstance(found, RequestRejected) and (found.kind, found.billed) == ("refused", False)
    assert "refuses every request" in found.doubt and "not your model" in found.doubt


@pytest.mark.parametrize(("fault", "trouble", "after"), [
    ("429", "overload", None), ("429-after", "overload", 1.0), ("503", "overload", 0.0), ("529", "overload", None),
    ("500", "server", None), ("502", "server", None), ("408", "server", None), ("409", "server", None),
])  # fmt: skip
def test_what_may_work_later(server, fault, trouble, after):
    found = ask_with(server, fault)
    assert isinstance(found, RetryLater) and (found.trouble, found.after) == (trouble, after)


def test_retry_after_as_a_date(server):
    found = ask_with(server, "429-date")
    assert isinstance(found, RetryLater) and found.after is not None and 0.5 < found.after <= 2.0


@pytest.mark.parametrize(
    ("fault", "kind"), [("context", "context_length"), ("filter-400", "content_filter"), ("422", "invalid")]
)
def test_what_is_wrong_with_one_row(server, fault, kind):
    found = ask_with(server, fault)
    assert isinstance(found, RequestRejected) and found.kind == kind and found.reason.startswith(("400", "422"))


@pytest.mark.parametrize(("fault", "reason", "text"), [
    ("length", "length", None), ("filtered", "content_filter", "half a"), ("refusal", "refusal", "I will not"),
])  # fmt: skip
def test_what_is_an_answer_all_the_same(server, fault, reason, text):
    plain = ApiRequest(ASK.messages, sampling=ASK.sampling, seed=7)
    answer = ask_with(server, fault, plain)
    assert isinstance(answer, ApiReply)
    assert answer.choices[0].finish_reason == reason and (text is None or answer.choices[0].text == text)


def test_reasoning_told_apart_and_missing_usage(server):
    answer = ask_with(server, "reasoning")
    assert isinstance(answer, ApiReply) and answer.choices[0].reasoning == "let me see"
    answer = ask_with(server, "no-usage")
    assert isinstance(answer, ApiReply) and answer.prompt_tokens is None


def test_log_probs_that_nobody_asked_for_do_not_matter(server):
    plain = ApiRequest(ASK.messages, sampling=ASK.sampling, seed=7)
    assert isinstance(ask_with(server, "no-logprobs", plain), ApiReply)
    assert set(LOGPROB_FAULTS) >= {"nan-logprob", "mismatch"}


def test_nobody_listens_and_unknown_hosts():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = ask(teacher(f"http://127.0.0.1:{port}/v1"))
    assert isinstance(found, RetryLater) and found.trouble == "connect" and not found.billed
    assert "Connect call failed" in found.reason
    found = ask(teacher("http://no-such-host.invalid/v1", timeout_seconds=5))
    assert isinstance(found, RetryLater) and found.trouble == "connect" and "host name is unknown" in found.reason


@pytest.mark.parametrize(
    ("scheme", "trouble", "reason"),
    [("https", "connect", "no TLS connection (.*; is it https"), ("http", "reset", "the connection broke off (")],
)
def test_a_connection_that_is_closed_is_told_as_what_it_was(scheme, trouble, reason):
    async def work():
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        async with server, open_endpoint(teacher(url, timeout_seconds=5)) as endpoint:
            return await endpoint.ask(ASK)

    found = asyncio.run(work())
    assert isinstance(found, RetryLater) and found.trouble == trouble and "event loop" not in found.reason
    assert all(piece in found.reason for piece in reason.split(".*"))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_certificate_that_nobody_signed(tmp_path):
    """A TLS server with a certificate of its own."""
    files = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost"
    subprocess.run([*command.split(), "-keyout", files[0], "-out", files[1]], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[1], files[0])

    async def work():
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
        url = f"https://localhost:{server.sockets[0].getsockname()[1]}/v1"
        async with server, open_endpoint(teacher(url, timeout_seconds=5)) as endpoint:
            await endpoint.ask(ASK)

    with pytest.raises(TeacherError, match="certificate"):
        asyncio.run(work())


def test_a_few_requests_at_once_in_their_order(server):
    server.script, said = in_turn("500"), []
    asks = [ApiRequest(({"role": "user", "content": f"bird {number}"},), seed=number) for number in range(5)]
    outcomes = ask_all(teacher(server), asks, said.append)
    texts = [outcome.found.choices[0].text for outcome in outcomes]
    assert texts == [reply_of(key_of(body_of(teacher(server), ask))) for ask in asks] and len(said) == 1
    server.script = lambda seen: "401"
    with pytest.raises(TeacherError, match="refuses every request"):
        ask_all(teacher(server), asks, said.append)


def test_within_a_loop_as_in_a_notebook(server):
    server.script = lambda seen: None

    async def cell():
        return ask_all(teacher(server), [ASK], print)

    [outcome] = asyncio.run(cell())
    assert isinstance(outcome.found, ApiReply)


# ---- the key ---------------------------------------------------------------------------------------------------------


def test_a_key_that_is_not_there(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " \n")
    with pytest.raises(TeacherError, match="environment variable OPENAI_API_KEY is empty"):
        read_key(teacher("http://x/v1"))


def test_a_server_without_keys_gets_none_of_ours(server):
    server.seen.clear()
    assert isinstance(ask_with(server, None, api_key_env=None), ApiReply)
    assert server.keys and not any(CANARY in key for key in server.keys)


def test_names_of_an_account_are_sent_to_nobody_else(server, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    server.seen.clear()
    assert isinstance(ask_with(server, None), ApiReply)
    assert server.heads and "org-mine" not in str(server.heads)


def test_without_the_client_it_says_how_to_get_it(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtra, match=r"limbeck\[api\]"):
        ask(teacher(server))


def pieces(text: str) -> list[str]:
    return [text[at : at + MATCH] for at in range(len(text) - MATCH + 1)]


@pytest.mark.parametrize("fault", ["401", "echo", "garbage", "hang", "redirect"])
def test_the_key_is_in_no_message_and_no_log(server, fault, caplog):
    caplog.set_level(logging.DEBUG)
    try:
        said = ask_with(server, fault).reason
    except TeacherError as error:
        said = str(error)
    for text in (said, caplog.text):
        assert not [piece for piece in pieces(CANARY) if piece in text]


def test_redaction_takes_pieces_of_a_key_and_nothing_else():
    assert redact(f"wrong key: {CANARY}.", CANARY) == "wrong key: ***."
    assert redact("wrong key: sk-ca****W3vX", CANARY) == "wrong key: **********"
    assert redact("wrong key", CANARY) == "wrong key"


@pytest.mark.parametrize(("headers", "seconds"), [
    ({"retry-after": "3"}, 3.0), ({"retry-after-ms": "250", "retry-after": "9"}, 0.25), ({"retry-after": "-4"}, 0.0),
    ({"retry-after": "soon"}, None), ({"retry-after": "nan"}, None), ({}, None),
    ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
])  # fmt: skip
def test_how_long_to_wait(headers, seconds):
    assert retry_after(headers) == seconds


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["401", "echo", "500", "429", "reset"])
def test_the_key_is_in_no_record_of_a_request_that_is_tried_again(server, fault, caplog):
    """With everything of ours recorded: attempts, waits, the end. What a gateway quotes of the key is not."""
    caplog.set_level(logging.DEBUG)
    server.script = in_turn(fault, fault, None)
    settings = teacher(server, malformed_tries=2)
    try:
        [outcome] = ask_all(settings, [replace(ASK, prompt=f"after {fault}", messages=())], lambda text: None)
        said = str(outcome)
    except TeacherError as error:
        said = str(error)
    ours = [record for record in caplog.records if record.name.startswith("limbeck")]
    assert ours or fault == "401", "the first trouble is recorded; a wrong key ends the job at once"
    for text in (said, caplog.text, *(repr(record.args) for record in ours)):
        assert not [piece for piece in pieces(CANARY) if piece in text]
