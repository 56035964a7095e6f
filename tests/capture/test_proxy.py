"""The proxy is not there: bytes, streams, errors, cancellations. And what it must not let through."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time

import openai
import pytest

from limbeck.capture import CaptureSettings
from limbeck.capture.proxy import serve
from limbeck.errors import CaptureError, RunDirError, StoreError
from tests.capture.conftest import KEY, body_of, chat, post, status_of
from tests.endpoint import fake_answers as up
from tests.endpoint.fake_server import FakeServer

USER = [{"role": "user", "content": "What is two and two?"}]


def test_the_official_client(running):
    """Chats, streams, completions, n and log-probabilities: what the client sees is what the upstream said."""

    async def main():
        async with running() as at, openai.AsyncOpenAI(base_url=f"{at.url}/v1", api_key=KEY) as client:
            direct = openai.AsyncOpenAI(base_url=f"{at.upstream.root}/v1", api_key=KEY)
            for one in (
                {"model": "m", "messages": USER},
                {"model": "m", "messages": USER, "n": 2, "logprobs": True, "top_logprobs": 1},
                {"model": "m", "messages": USER, "stream": True, "logprobs": True, "n": 2},
            ):
                answers = [await each.chat.completions.create(**one) for each in (client, direct)]
                if one.get("stream"):
                    answers = [[chunk.model_dump() async for chunk in answer] for answer in answers]
                else:
                    answers = [answer.model_dump() for answer in answers]
                assert answers[0] == answers[1]
            for one in ({"prompt": "Two and two", "logprobs": 1}, {"prompt": "Two", "stream": True}):
                answer = await client.completions.create(model="m", **one)
                texts = [c.choices[0].text async for c in answer if c.choices] if one.get("stream") else [answer]
                text = "".join(texts) if one.get("stream") else answer.choices[0].text
                assert text == "Four, of course."
            await direct.close()
            status = await at.settled(5)
            assert (status["recorded"], status["requests"]) == (5, 5)
            records = at.records()
        assert [record["replies"][0]["content"] for record in records] == ["Four, of course."] * 5
        assert [len(record["replies"]) for record in records] == [1, 2, 2, 1, 1]
        assert records[1]["replies"] == records[2]["replies"]  # a stream is put together to what it would have been
        assert [entry["token"] for entry in records[2]["replies"][1]["logprobs"]["content"]] == [
            "Four,",
            " of",
            " course.",
        ]
        assert records[3]["replies"][0]["logprobs"]["tokens"] == ["Four,", " of", " course."]
        assert records[4]["prompt"] == "Two" and records[4]["usage"] == up.USAGE

    asyncio.run(main())


def test_errors_reach_the_official_client_as_they_are(running):
    async def answer(request):
        status = {"a": "401 Unauthorized", "b": "429 Too Many Requests", "c": "500 Oh"}[request.json()["model"]]
        yield up.as_json({"error": {"message": "no", "type": "t", "code": "c"}}, status, "x-request-id: r1")

    async def main():
        async with running(answer) as at:
            client = openai.AsyncOpenAI(base_url=f"{at.url}/v1", api_key=KEY, max_retries=0)
            for model, kind in {
                "a": openai.AuthenticationError,
                "b": openai.RateLimitError,
                "c": openai.InternalServerError,
            }.items():
                with pytest.raises(kind) as raised:
                    await client.chat.completions.create(model=model, messages=USER)
                assert raised.value.request_id == "r1" and raised.value.code == "c"
            await client.close()
            assert at.proxy.status()["waiting"] == 0
        assert at.records() == []

    asyncio.run(main())


ANSWERS = {
    "length": up.plain(
        b"\x00\xffbinary\r\n\r\n", "200 OK", "X-Odd-CASE: a", "x-odd-case: b", "content-type: image/png"
    ),
    "chunked": b"HTTP/1.1 202 Fine Then\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\n\r\n3\r\nabc\r\n"
    b"5\r\ndefgh\r\n0\r\n\r\n",
    "empty": b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
    "redirect": up.plain(b"", "302 Found", "Location: http://elsewhere.example/"),
    "error": up.plain(b"<html>no</html>", "503 Busy", "Retry-After: 7", "content-type: text/html"),
    "early hints": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + up.plain(b"late"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_any_path_and_any_answer_pass_byte_for_byte(running, name):
    sent = b"PUT /v1/files/a%20b?x=1&y=%2F HTTP/1.1\r\nHost: h\r\nX-Strange:  kept \r\nCookie: c=1\r\n"
    sent += b"Connection: close, X-Hop\r\nX-Hop: dropped\r\nTransfer-Encoding: chunked\r\n\r\n"
    sent += b"4\r\n\x00\x01\x02\xff\r\n1\r\n!\r\n0\r\n\r\n"

    async def main():
        async with running(ANSWERS[name]) as at:
            through = await at.raw(sent)
            seen = at.upstream.seen[0]
        assert seen.line == "PUT /v1/files/a%20b?x=1&y=%2F HTTP/1.1"
        assert seen.body == b"\x00\x01\x02\xff!"
        assert seen.header("Host") == f"127.0.0.1:{at.upstream.port}"
        assert (seen.header("X-Strange"), seen.header("Cookie"), seen.header("X-Hop")) == ("kept", "c=1", None)
        want = ANSWERS[name].removeprefix(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        hop = (b"connection: close", b"transfer-encoding: chunked")
        heads = [
            [line for line in one.split(b"\r\n\r\n")[0].split(b"\r\n") if line.lower() not in hop]
            for one in (through, want)
        ]
        assert heads[0] == heads[1]
        if name == "chunked":
            assert body_of(through).endswith(b"0\r\n\r\n") and b"abc" in through and b"defgh" in through
        else:
            assert body_of(through) == body_of(want)
        assert at.records() == []

    asyncio.run(main())


def test_methods_without_bodies_and_connections_that_are_kept(running):
    async def main():
        async with running(up.plain(b"body")) as at:
            reader, writer = await asyncio.open_connection("127.0.0.1", at.proxy.address[1])
            for method in (b"GET", b"DELETE", b"GET"):
                writer.write(method + b" /v1/models HTTP/1.1\r\nHost: h\r\n\r\n")
                assert (await reader.readuntil(b"body")).startswith(b"HTTP/1.1 200")
            writer.close()
            assert [request.line[:6] for request in at.upstream.seen] == ["GET /v", "DELETE", "GET /v"]
            assert len(at.proxy.pool.idle) == 1  # one connection to the upstream did for all three
            old = await at.raw(b"GET /v1/models HTTP/1.0\r\n\r\n")
            assert old.endswith(b"body") and b"connection: close" in old.lower()
            expect = post("/v1/x", b"12345", "Expect: 100-continue")
            answer = await at.raw(expect)
            assert answer.endswith(b"body") and at.upstream.seen[-1].header("expect") is None

    asyncio.run(main())


def test_events_are_relayed_at_once(running):
    """The second event is only made once the first has arrived, head included."""
    arrived = asyncio.Event()

    async def answer(request):
        yield up.STREAM_HEAD
        await asyncio.wait_for(arrived.wait(), 10)
        for one in up.chunks(request.json(), "one two three"):
            arrived.clear()
            yield up.chunk(up.event(one))
            await asyncio.wait_for(arrived.wait(), 10)
        yield up.chunk(up.event(b"[DONE]")) + b"0\r\n\r\n"

    async def main():
        async with running(answer) as at:
            reader, writer = await asyncio.open_connection("127.0.0.1", at.proxy.address[1])
            writer.write(post("/v1/chat/completions", chat(stream=True)))
            await reader.readuntil(b"\r\n\r\n")
            while True:
                arrived.set()
                piece = await asyncio.wait_for(reader.readuntil(b"\n\n"), 10)
                if b"[DONE]" in piece:
                    break
            writer.close()
            await at.settled(1)
        assert at.records()[0]["replies"][0]["content"] == "one two three"

    asyncio.run(main())


def test_a_client_that_leaves_cancels_the_upstream(running):
    async def answer(request):
        yield up.STREAM_HEAD
        yield up.chunk(up.event(up.chunks(request.json(), "one two")[0]))
        await asyncio.sleep(60)

    async def main():
        async with running(answer) as at:
            begun = time.monotonic()
            for request in (chat(stream=True), chat(stream=True)):
                await at.raw(post("/v1/chat/completions", request), until=b"\n\n")
            async with asyncio.timeout(10):
                while at.upstream.left < 2:
                    await asyncio.sleep(0.01)
            assert time.monotonic() - begun < 10
            status = await at.settled(2)
        assert status["recorded"] == status["cut"] == 2
        assert at.records()[0]["finish_reasons"] == ["cut"] and at.records()[0]["replies"][0]["content"] == "one"

    asyncio.run(main())


def test_a_client_that_leaves_before_the_answer_cancels_too(running):
    async def answer(request):
        await asyncio.sleep(60)
        yield b""

    async def main():
        async with running(answer) as at:
            _, writer = await asyncio.open_connection("127.0.0.1", at.proxy.address[1])
            writer.write(post("/v1/chat/completions", chat()))
            while not at.upstream.seen:
                await asyncio.sleep(0.01)
            writer.close()
            async with asyncio.timeout(10):
                while not at.upstream.left:
                    await asyncio.sleep(0.01)
            assert at.proxy.status()["waiting"] == 0

    asyncio.run(main())


CUTS = {
    "stream": up.STREAM_HEAD + up.chunk(up.event({"choices": [{"index": 0, "delta": {"content": "a"}}], "model": "m"})),
    "length": b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort",
}


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_answer_stays_cut(running, name):
    async def answer(_request):
        yield CUTS[name]
        yield b""

    async def main():
        async with running(answer) as at:
            through = await at.raw(post("/v1/chat/completions", chat(stream=True)))
            assert body_of(through) == body_of(CUTS[name])  # no last chunk: the client can tell
            status = await at.settled(1)
            assert status["cut"] == (name == "stream") and status["unreadable"] == (name == "length")

    asyncio.run(main())


def test_an_upstream_that_is_not_there(running):
    async def main():
        async with running() as at:
            port = at.upstream.port
        async with running(upstream=f"http://127.0.0.1:{port}") as at:
            client = openai.AsyncOpenAI(base_url=f"{at.url}/v1", api_key=KEY, max_retries=0)
            with pytest.raises(openai.InternalServerError) as raised:
                await client.chat.completions.create(model="m", messages=USER)
            await client.close()
            assert raised.value.status_code == 502 and raised.value.code == "upstream_unreachable"
            assert KEY not in str(raised.value)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("pieces", "status", "code"),
    [
        ([b""], 502, "upstream_closed"),
        ([b"garbage without end\r\n\r\n", b""], 502, "upstream_closed"),
        ([b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n"], 502, "upstream_closed"),
        ([None], 504, "upstream_timeout"),
    ],
    ids=["closed", "garbage", "bad header", "silent"],
)
def test_an_upstream_that_gives_no_answer(running, pieces, status, code):
    async def answer(_request):
        for piece in pieces:
            if piece is None:
                await asyncio.sleep(60)
            yield piece or b""

    async def main():
        async with running(answer, timeout=0.3) as at:
            through = await at.raw(post("/v1/chat/completions", chat()))
            assert status_of(through) == status
            assert json.loads(body_of(through))["error"]["code"] == code
            assert at.proxy.status()["waiting"] == 0

    asyncio.run(main())


def test_an_answer_may_come_before_the_question_is_read(running):
    """A large upload is refused by the upstream after its head: the client sees that answer."""

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(up.plain(b"too much", "413 No", "connection: close"))
        await writer.drain()
        while await reader.read(2**20):  # as real servers do: closing on unread bytes would reset the connection
            pass
        writer.close()

    async def main():
        server = await asyncio.start_server(early, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with running(upstream=f"http://127.0.0.1:{port}") as at:
            through = await at.raw(post("/v1/files", b"x" * 2**24))
            assert through.startswith(b"HTTP/1.1 413 No") and through.endswith(b"too much")
        server.close()
        await asyncio.sleep(0.05)

    asyncio.run(main())


REFUSED = {
    "both lengths": (
        b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
        400,
    ),
    "two lengths": (b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
    "odd coding": (b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "two hosts": (b"GET /v1/x HTTP/1.1\r\nHost: h\r\nHost: g\r\n\r\n", 400),
    "no host": (b"GET /v1/x HTTP/1.1\r\n\r\n", 400),
    "bare line feed in a value": (b"GET /v1/x HTTP/1.1\r\nHost: h\r\nX-A: a\rX-B: b\r\n\r\n", 400),
    "nul": (b"GET /v1/x HTTP/1.1\r\nHost: h\r\nX-A: a\x00b\r\n\r\n", 400),
    "space before colon": (b"GET /v1/x HTTP/1.1\r\nHost: h\r\nX-A : a\r\n\r\n", 400),
    "absolute target": (b"GET http://elsewhere.example/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "connect": (b"CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "dots": (b"GET /v1/%2e%2e/admin HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "long head": (b"GET /v1/x HTTP/1.1\r\nHost: h\r\nX-A: " + b"a" * 100_000 + b"\r\n\r\n", 431),
    "no http": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "announced length": (b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n\r\n" + b"a" * 5000, 413),
    "length as it comes": (
        b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n"
        + b"a" * 5000
        + b"\r\n0\r\n\r\n",
        413,
    ),
    "own paths": (b"GET /-/nothing HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 404),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(running, name):
    request, status = REFUSED[name]

    async def main():
        async with running(up.plain(b"reached"), max_body=4096) as at:
            through = await at.raw(request)
            assert status_of(through) == status
            assert set(json.loads(body_of(through))["error"]) == {"message", "type", "param", "code"}
            assert at.upstream.seen == []

    asyncio.run(main())


def test_headers_for_the_proxy_alone_stay_here(running):
    async def main():
        async with running() as at:
            headers = ["x-limbeck-tag-topic: maths", "X-Limbeck-Tag-User: Ann", "x-limbeck-conversation: c1"]
            metadata = {"metadata": {"topic": "lost", "team": "blue"}}
            await at.raw(post("/v1/chat/completions", chat(**metadata), *headers, "X-Request-Id: r-7"))
            await at.settled(1)
            assert not [name for name, _ in at.upstream.seen[0].headers if "limbeck" in name.lower()]
            assert at.upstream.seen[0].json()["metadata"] == {"topic": "lost", "team": "blue"}
        record = at.records()[0]
        assert record["tags"] == {"topic": "maths", "team": "blue", "user": "Ann"}
        assert (record["id"], record["conversation"]) == ("r-7", "c1")

    asyncio.run(main())


def test_own_pages_and_the_path_of_the_upstream(running):
    async def main():
        async with FakeServer(up.assistant()) as api, running(upstream=f"{api.root}/api/v1", tags={"app": "a"}) as at:
            await at.raw(post("/v1/chat/completions", chat()))
            assert api.seen[0].path == "/api/v1/chat/completions"
            await at.settled(1)
            get = "GET /-/{} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
            assert json.loads(body_of(await at.raw(get.format("health").encode()))) == {"ok": True}
            status = json.loads(body_of(await at.raw(get.format("status").encode())))
            assert (status["recorded"], status["dropped"], status["requests"]) == (1, 0, 3)
            assert len(api.seen) == 1
        assert at.records()[0]["tags"] == {"app": "a"}

    asyncio.run(main())


def test_slow_readers_do_not_fill_memory(running):
    """16 MiB for a client that reads nothing: the upstream is told to wait."""
    sent = 0

    async def answer(_request):
        nonlocal sent
        yield b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (64 * 2**20)
        for _ in range(1024):
            yield b"x" * 2**16
            sent += 2**16

    async def main():
        async with running(answer) as at:
            reader, writer = await asyncio.open_connection("127.0.0.1", at.proxy.address[1], limit=2**16)
            writer.write(b"GET /v1/files/f HTTP/1.1\r\nHost: h\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            before = -1
            while before != sent:  # until it stands still
                before = sent
                await asyncio.sleep(0.3)
            assert sent < 40 * 2**20
            left = 64 * 2**20
            while left:
                left -= len(await reader.read(2**20))
            writer.close()

    asyncio.run(main())


def test_answers_on_their_way_end_before_the_proxy_does(running):
    async def answer(request):
        await asyncio.sleep(0.3)
        yield up.as_json(up.completion(request.json(), "late"))

    async def main():
        async with running(answer) as at:
            asking = asyncio.create_task(at.raw(post("/v1/chat/completions", chat())))
            while not at.upstream.seen:
                await asyncio.sleep(0.01)
        assert b"late" in await asking
        assert at.records()[0]["replies"][0]["content"] == "late"

    asyncio.run(main())


def test_tls_is_verified(running):
    """An upstream that speaks no TLS, or whose certificate nobody signed, is not spoken to."""

    heard = []

    async def plain_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1000))
        writer.write(up.plain(b"this is no TLS"))
        writer.close()

    async def main():
        server = await asyncio.start_server(plain_http, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with running(upstream=f"https://127.0.0.1:{port}") as at:
            through = await at.raw(post("/v1/chat/completions", chat(), f"Authorization: Bearer {KEY}"))
            assert at.proxy.pool.tls is not None and at.proxy.pool.tls.verify_mode is ssl.CERT_REQUIRED
        assert status_of(through) == 502 and KEY.encode() not in b"".join(heard) and heard
        server.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"upstream": "ftp://a"}, "http and https"),
        ({"upstream": "a.example"}, "http and https"),
        ({"upstream": "https://u:p@a.example"}, "user or password"),
        ({"upstream": "https://a.example/v1?key=x"}, "query"),
        ({"upstream": "http://a.example:99999"}, "cannot be read"),
        ({"host": "0.0.0.0"}, "--allow-remote"),
        ({"host": "::"}, "--allow-remote"),
        ({"sample": 0.0}, "share"),
        ({"sample": 1.5}, "share"),
        ({"redact": ("emial",)}, "allowed are all, none"),
        ({"redact": ("x=(",)}, "no regular expression"),
        ({"redact": ("x=a*",)}, "empty text"),
        ({"redact": ("none", "email")}, "stands beside"),
        ({"max_bytes": 0}, "--max-bytes"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, settings, message):
    with pytest.raises(CaptureError, match=message):
        CaptureSettings(**{"upstream": "http://127.0.0.1:1", "store": tmp_path, **settings})


def test_settings_that_make_sense(tmp_path):
    for host, more in (("127.0.0.1", {}), ("::1", {}), ("localhost", {}), ("0.0.0.0", {"allow_remote": True})):
        CaptureSettings("https://api.example/v1", tmp_path, host=host, **more)


@pytest.mark.slow
def test_what_ends_a_start(running, tmp_path):
    async def start(**settings):
        async with serve(CaptureSettings("http://127.0.0.1:1", **settings)):
            pass

    async def main():
        async with running() as at:
            with pytest.raises(CaptureError, match="Choose another --port"):
                await start(store=tmp_path / "b", port=at.proxy.address[1])
            with pytest.raises(RunDirError, match="in use by another capture"):
                await start(store=at.store, port=0)
        with contextlib.suppress(FileExistsError):
            (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match="cannot be written"):
            await start(store=tmp_path / "file" / "store", port=0)

    asyncio.run(main())
