"""What the server refuses, and what it never tells."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import select
import socket
import statistics
import time
import urllib.parse
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from limbeck.errors import RecipeError
from limbeck.serve import run
from limbeck.serve.dispatch import Chosen, plain
from limbeck.serve.limits import Keys, json_depth
from limbeck.serve.settings import load_serving
from limbeck.serve.upstream import UpstreamModel
from tests.endpoint.fake_answers import plain as plain_answer
from tests.serve.conftest import KEY, SECONDS, Decided, Router, running, teacher
from tests.serve.test_pool import Opener

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.serve.conftest import Running

BODY = {"model": "code", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def locked(experts_folder: Path) -> Iterator[Running]:
    """A server that wants one of two keys, with tight limits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONE_KEY", KEY)
        patch.setenv("OTHER_KEY", KEY[::-1])
        limits = ("limits.max_body=64K", "limits.body_seconds=0.4", "limits.header_seconds=0.4", "limits.max_depth=16")
        with running(experts_folder, "keys={one: ONE_KEY, other: OTHER_KEY}", *limits) as found:
            found.client.headers["authorization"] = f"Bearer {KEY}"
            yield found


def address(server: Running) -> tuple[str, int]:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return host, int(port)


def said(server: Running, data: bytes, *, seconds: float = SECONDS) -> bytes:
    """What comes back for raw bytes, until the server closes."""
    with socket.create_connection(address(server), timeout=seconds) as one:
        one.sendall(data)
        found = b""
        while part := one.recv(65536):
            found += part
    return found


# ---- who may ask -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/code", "/v1/experts", "/metrics", "/openapi.json", "/nope"])
def test_everything_wants_a_key(locked: Running, path: str) -> None:
    with httpx2.Client(base_url=locked.url, trust_env=False) as nobody:
        found = nobody.get(path)
        assert found.status_code == 401 and found.headers["www-authenticate"] == "Bearer"
        assert found.json()["error"]["code"] == "invalid_api_key"
        for wrong in (KEY[:-1], KEY + "x", KEY.upper(), "Bearer"):
            assert nobody.get(path, headers={"authorization": f"Bearer {wrong}"}).status_code == 401
        assert nobody.get(path, headers={"authorization": f"Basic {KEY}"}).status_code == 401
        assert nobody.get(f"{path}?key={KEY}").status_code == 401
    assert locked.client.get(path).status_code in (200, 404)


def test_the_page_and_health_do_not(locked: Running) -> None:
    with httpx2.Client(base_url=locked.url, trust_env=False) as nobody:
        for path in ("/", "/page.css", "/page.js", "/health"):
            assert nobody.get(path).status_code == 200
        assert nobody.post("/v1/chat/completions", json=BODY).status_code == 401


def test_the_log_names_keys_and_never_shows_them(locked: Running) -> None:
    before = len(locked.events("request"))
    locked.client.get("/v1/models")
    locked.client.get("/v1/models", headers={"authorization": f"Bearer {KEY[::-1]}"})
    names = [found.get("key") for found in locked.events("request", before + 2) if found["path"] == "/v1/models"]
    assert names[-2:] == ["one", "other"]


def test_all_keys_are_compared_each_time() -> None:
    keys = Keys.read({str(n): str(n) for n in range(3)}, {str(n): f"{n}-{'x' * 20}" for n in range(3)})
    assert [keys.who(f"Bearer {n}-{'x' * 20}".encode()) for n in range(4)] == ["0", "1", "2", None]
    assert keys.who(None) is None and Keys({}).who(None) == ""
    many = Keys.read({str(n): str(n) for n in range(200)}, {str(n): f"{n:03}-{'x' * 20}" for n in range(200)})

    def seconds(key: bytes) -> float:
        times = []
        for _ in range(60):
            begun = time.process_time()
            many.who(key)
            times.append(time.process_time() - begun)
        return statistics.median(times)

    first, last, none = (seconds(f"Bearer {n}-{'x' * 20}".encode()) for n in ("000", "199", "zzz"))
    assert max(first, last, none) < 3 * min(first, last, none)  # an early end would be a factor of two hundred


@pytest.mark.parametrize(
    ("environment", "match"),
    [({}, "empty"), ({"A": "short"}, "16"), ({"A": "with a space in it all"}, "16"), ({"A": "ü" * 20}, "16")],
)
def test_what_is_no_key_is_refused(environment: dict[str, str], match: str) -> None:
    with pytest.raises(RecipeError, match=match) as caught:
        Keys.read({"a": "A"}, environment)
    assert all(value not in str(caught.value) for value in environment.values())


def test_two_names_of_one_key_are_refused() -> None:
    with pytest.raises(RecipeError, match="same key"):
        Keys.read({"a": "A", "b": "B"}, {"A": KEY, "B": KEY})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_addresses_want_a_key(host: str) -> None:
    with pytest.raises(RecipeError, match="keys"):
        load_serving(None, [f"host='{host}'"])
    assert load_serving(None, [f"host='{host}'", "keys={app: APP_KEY}"]).host == host
    for local in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        assert load_serving(None, [f"host='{local}'"]).keys == {}


def test_another_host_name_is_refused_where_no_key_is_wanted(server: Running) -> None:
    """A page of another site can make its own name lead here (DNS rebinding), and would be let in."""
    assert server.client.get("/v1/models", headers={"host": "evil.example"}).status_code == 421
    for host in ("localhost:80", "LOCALHOST", "LocalHost.:8000", "[::1]:80", "127.0.0.1"):
        assert server.client.get("/v1/models", headers={"host": host}).status_code == 200


# ---- sizes -----------------------------------------------------------------------------------------------------------


def test_bodies_are_bounded(locked: Running) -> None:
    found = locked.client.post("/v1/chat/completions", json={**BODY, "user": "x" * 70_000})
    assert found.status_code == 413 and found.json()["error"]["code"] == "body_too_large"

    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b"[" + b" " * 4096

    with contextlib.suppress(httpx2.WriteError):  # it may close before all of it is sent
        assert locked.client.post("/v1/chat/completions", content=chunks()).status_code == 413
    for length in ("-1", "1e9", "99999999999999999999"):
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {length}"
        assert said(locked, f"{head}\r\n\r\n".encode()).split(b" ")[1] in (b"400", b"413")


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_deep_json_is_refused(locked: Running, opening: str) -> None:
    text = opening * 5000
    found = locked.client.post("/v1/chat/completions", content=text, headers={"content-type": "application/json"})
    assert found.status_code == 400 and found.json()["error"]["code"] == "json_too_deep"


def test_depth_is_counted_outside_of_texts() -> None:
    deep = {"a": [{"b": [1, {"c": "[[[[{{{"}]}], "d": '\\"[[['}
    for indent in (None, 1):
        assert json_depth(json.dumps(deep, indent=indent).encode(), 99) == 5
    assert json_depth(b'"' + b"[" * 100, 9) == 0 and json_depth(b"[" * 100, 9) == 10
    assert json_depth(b"][][", 9) == 1
    begun = time.process_time()
    json_depth(b'"\\' * 500_000, 9)
    json_depth(b"[]" * 500_000, 9)
    assert time.process_time() - begun < 5  # what grows with the square would take an hour


def test_counts_are_bounded(server: Running) -> None:
    assert server.chat(messages=BODY["messages"] * 300).json()["error"]["param"] == "messages"
    assert server.chat(n=9).json()["error"]["param"] == "n"
    assert server.complete(["a"] * 60, n=8).json()["error"]["param"] == "n"


# ---- slow clients ----------------------------------------------------------------------------------------------------


def test_a_slow_head_is_closed(locked: Running) -> None:
    """Its time begins with the connection: another byte now and then does not prolong it."""
    with socket.create_connection(address(locked), timeout=SECONDS) as one:
        begun = time.monotonic()
        one.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: ")
        while not select.select([one], [], [], 0.1)[0]:
            one.sendall(b"y")
            assert time.monotonic() - begun < SECONDS
        assert one.recv(4096).startswith(b"HTTP/1.1 408")
        assert one.recv(4096) == b"" and time.monotonic() - begun > 0.3


def test_a_silent_connection_is_closed(locked: Running) -> None:
    with socket.create_connection(address(locked), timeout=SECONDS) as one:
        assert one.recv(4096).startswith(b"HTTP/1.1 408") and one.recv(4096) == b""


def test_a_slow_body_is_refused(locked: Running) -> None:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 100\r\n\r\n"
    found = said(locked, head.encode() + b"{")
    assert found.startswith(b"HTTP/1.1 408") and b"body_timeout" in found


@pytest.mark.slow
def test_a_second_request_may_take_its_time_between(experts_folder: Path) -> None:
    """Connections are kept open after an answer, and closed when they are idle for too long."""
    with contextlib.ExitStack() as held:
        server = held.enter_context(running(experts_folder, "limits.header_seconds=0.3", "limits.idle_seconds=3"))
        one = held.enter_context(socket.create_connection(address(server), timeout=SECONDS))
        for _ in range(2):
            one.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            time.sleep(0.6)
            assert one.recv(4096).startswith(b"HTTP/1.1 200")
        assert one.recv(4096) == b""


@pytest.mark.slow
def test_a_client_that_does_not_read_is_cut(experts_folder: Path) -> None:
    with running(experts_folder, "limits.write_seconds=0.3") as server:
        body = json.dumps({**BODY, "n": 8, "max_tokens": 100, "stream": True, "logprobs": True, "top_logprobs": 20})
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(address(server))
            one.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            assert server.events("request", 1)[0].get("cancelled") is True
        assert idle(server)


def test_of_too_many_connections_the_longest_silent_gives_way(experts_folder: Path) -> None:
    with running(experts_folder, "limits.max_connections=3") as server, contextlib.ExitStack() as held:
        silent = [held.enter_context(socket.create_connection(address(server), timeout=SECONDS)) for _ in range(3)]
        time.sleep(0.1)
        data = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert said(server, data).startswith(b"HTTP/1.1 200")
        assert silent[0].recv(4096).startswith(b"HTTP/1.1 503")


@pytest.mark.slow
def test_where_all_connections_are_at_work_another_is_refused(experts_folder: Path) -> None:
    opened = Opener()
    opened.may_go_on.clear()
    body = json.dumps(BODY)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    data = f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    with contextlib.ExitStack() as held:
        server = held.enter_context(running(experts_folder, "limits.max_connections=2", open_with=opened))
        pool = held.enter_context(concurrent.futures.ThreadPoolExecutor(2))
        asked = [pool.submit(said, server, data) for _ in range(2)]
        until = time.monotonic() + SECONDS
        while len(server.built.gate.busy) < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert said(server, b"").startswith(b"HTTP/1.1 503")
        opened.may_go_on.set()
        assert all(one.result().startswith(b"HTTP/1.1 200") for one in asked)


def idle(server: Running, seconds: float = SECONDS) -> bool:
    """Whether no reply is under way any more."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        places = server.built.house.pool.places.values()
        if not any(place.users or (place.opened and place.opened.engine.stats.running) for place in places):
            return True
        time.sleep(0.02)
    return False


def test_a_client_that_goes_away_cancels(server: Running) -> None:
    count = len(server.events("request"))
    for stream in (True, False):
        body = json.dumps({**BODY, "n": 4, "max_tokens": 100, "stream": stream})
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(address(server), timeout=SECONDS) as one:
            one.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            time.sleep(0.05)
        assert idle(server)
    for found in server.events("request", count + 2)[count:]:
        assert found["cancelled"] is True and found.get("completion_tokens", 0) < 400


@pytest.mark.slow
def test_a_request_that_takes_too_long_ends(experts_folder: Path) -> None:
    with running(experts_folder, "limits.request_seconds=0.06", "preload=[code]") as server:
        found = server.chat(n=8, max_tokens=100)
        assert found.status_code == 503 and found.json()["error"]["code"] == "timeout"
        events = server.chat(n=8, max_tokens=100, stream=True).text.split("\n\n")
        assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "timeout"
        assert idle(server)


# ---- rates and queues ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_requests_per_minute(experts_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE_KEY", KEY)
    monkeypatch.setenv("OTHER_KEY", KEY[::-1])
    told = ("keys={one: ONE_KEY, other: OTHER_KEY}", "limits.requests_per_minute=3")
    with running(experts_folder, *told) as server:
        server.client.headers["authorization"] = f"Bearer {KEY}"
        assert [server.chat().status_code for _ in range(4)] == [200, 200, 200, 429]
        found = server.chat()
        assert found.json()["error"]["type"] == "rate_limit_error" and 1 <= int(found.headers["retry-after"]) <= 20
        assert server.client.get("/v1/models").status_code == 200  # looking is free
        server.client.headers["authorization"] = f"Bearer {KEY[::-1]}"
        assert server.chat().status_code == 200


def test_tokens_per_minute(experts_folder: Path) -> None:
    with running(experts_folder, "limits.tokens_per_minute=60") as server:
        used = 0
        while (found := server.chat()).status_code == 200:
            used += found.json()["usage"]["total_tokens"]
        assert found.status_code == 429 and 60 <= used < 140 and "tokens" in found.json()["error"]["message"]


@pytest.mark.slow
def test_a_burst_beyond_the_queue_is_told_to_wait(experts_folder: Path) -> None:
    with running(experts_folder, "limits.max_in_flight=4") as server:
        server.chat()
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            found = list(pool.map(lambda _: server.chat(max_tokens=60), range(12)))
        codes = [one.status_code for one in found]
        assert set(codes) == {200, 503} and codes.count(200) >= 4
        full = next(one for one in found if one.status_code == 503)
        assert full.headers["retry-after"] == "1" and full.json()["error"]["code"] == "overloaded"
        assert server.chat().status_code == 200


# ---- headers and paths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "code/../weather", "code@../..", "code\x00", "%2e%2e", "C:\\x"]
)
def test_names_are_never_paths(server: Running, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = server.chat(model=name)
    assert found.status_code == 404 and found.json()["error"]["code"] == "model_not_found"
    quoted = urllib.parse.quote(name, safe="")
    for path in (f"/v1/models/{quoted}", f"/{quoted}", f"/page.css/{quoted}"):
        with contextlib.suppress(httpx2.InvalidURL):
            assert server.client.get(path).status_code in (400, 404)


@pytest.mark.parametrize("path", [b"/../../etc/passwd", b"//etc/passwd", b"/page.css/../../app.py", b"/%2e%2e/app.py"])
def test_raw_paths_lead_nowhere(server: Running, path: bytes) -> None:
    found = said(server, b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 404") and b"root:" not in found


def test_what_a_router_says_cannot_add_a_header(experts_folder: Path) -> None:
    evil = "because\r\nset-cookie: a=b\r\n\r\n<script>\u202e\x1b[2J é" + "x" * 500
    with running(experts_folder, router=Router(Decided("code", 0.9, evil))) as server:
        found = server.chat(model="auto")
        assert "set-cookie" not in found.headers
        header = found.headers["x-limbeck-route"]
        assert header.startswith("auto; confidence=0.900; reason=because??set-cookie") and len(header) <= 200
        assert header.isascii() and header.isprintable()
        assert found.json()["limbeck"]["reason"] == evil  # JSON can say anything
    assert plain("a\r\nb\tc\x7f") == "a??b?c?"
    assert set(Chosen("fallback", "\n", remote=UpstreamModel("n\n", "http://x", "m")).headers.values()) == {
        "n?", "fallback; reason=?"
    }  # fmt: skip


def test_bytes_that_are_no_request(server: Running) -> None:
    for data in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nA b: c\r\n\r\n", b"X" * 70_000):
        found = said(server, data)
        assert found.startswith(b"HTTP/1.1 400") and b"bad_http" in found


def test_no_other_origin_is_let_in(server: Running) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for found in (
        server.client.options("/v1/chat/completions", headers=headers),
        server.client.get("/v1/models", headers=headers),
    ):
        assert not [name for name in found.headers if name.startswith("access-control")]
    page = server.client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"] and page.headers["x-frame-options"] == "DENY"
    assert server.client.get("/health").headers["x-content-type-options"] == "nosniff"
    assert "server" not in page.headers


def test_no_web_sockets(server: Running) -> None:
    data = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    found = said(server, data)
    assert found.startswith(b"HTTP/1.1 ") and b"\r\n\r\n" in found  # an answer, and not an upgrade
    assert not found.startswith(b"HTTP/1.1 101") and b"upgrade: websocket" not in found.lower()


# ---- other servers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://x", "//x", "x", "http://", "https://user:word@x", "http://a b", "http://x\\@y"]
)
def test_an_upstream_is_http(url: str) -> None:
    with pytest.raises(RecipeError, match=r"upstream\.url"):
        load_serving(None, [f"upstream.url={url!r}", "upstream.model=teacher"])
    with pytest.raises(RecipeError, match="backends"):
        load_serving(None, [f"backends={{code: {url!r}}}"])


def test_a_request_cannot_say_where_to_go(experts_folder: Path) -> None:
    with teacher() as upstream, teacher() as elsewhere:
        with running(experts_folder, f"upstream.url={upstream.url}", "upstream.model=teacher") as server:
            for key in ("url", "base_url", "api_base", "upstream", "endpoint", "api_key"):
                found = server.chat(model="teacher", **{key: elsewhere.url})
                assert found.status_code == 400 and found.json()["error"]["param"] == key
            assert server.chat(model=elsewhere.url).status_code == 404
            image = [{"type": "image_url", "image_url": {"url": elsewhere.url}}]
            assert server.chat(image, model="teacher").status_code == 400  # type: ignore[arg-type]
            headers = {"x-forwarded-host": "evil", "x-upstream": elsewhere.url, "x-request-id": "mine"}
            body = {**BODY, "model": "teacher"}
            found = server.client.post("/v1/chat/completions", json=body, headers=headers)
            assert found.status_code == 200 and found.headers["x-request-id"] != "mine"
        assert len(upstream.heads) == 1 and not elsewhere.heads
        assert not {"x-upstream", "x-forwarded-host"} & set(upstream.heads[0])


def test_a_redirect_is_not_followed(experts_folder: Path) -> None:
    with contextlib.ExitStack() as held:
        elsewhere = held.enter_context(teacher())
        redirected = plain_answer(b"{}", "307 X", f"location: {elsewhere.url}/chat/completions")
        upstream = held.enter_context(teacher(redirected))
        with running(experts_folder, f"upstream.url={upstream.url}", "upstream.model=teacher") as server:
            for stream in (False, True):
                found = server.chat(model="teacher", stream=stream)
                assert found.status_code == 503 and found.json()["error"]["code"] == "upstream_unavailable"
                assert elsewhere.url not in found.text
        assert len(upstream.heads) == 2 and not elsewhere.heads


def test_a_proxy_of_the_environment_is_not_used(experts_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with teacher() as upstream, teacher() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        with running(experts_folder, f"upstream.url={upstream.url}", "upstream.model=teacher") as server:
            assert server.chat(model="teacher").status_code == 200
        assert upstream.heads and not proxy.heads


# ---- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_keys_and_prompts_are_told_nowhere(
    experts_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    """Canaries in every place that holds a secret, looked for in everything that comes out."""
    own, theirs, prompt = f"own-{KEY}", f"theirs-{KEY}", "canary prompt 8472"
    monkeypatch.setenv("OWN_KEY", own)
    monkeypatch.setenv("THEIR_KEY", theirs)
    out: list[str] = []
    for trouble in (None, "quote", "broken"):
        with teacher(trouble) as upstream:
            told = (f"upstream.url={upstream.url}", "upstream.model=teacher", "upstream.api_key_env=THEIR_KEY")
            with running(experts_folder, "keys={app: OWN_KEY}", *told) as server:
                server.client.headers["authorization"] = f"Bearer {own}"
                for model in ("code", "teacher", "nobody"):
                    for stream in (False, True):
                        found = server.chat(prompt, model=model, stream=stream)
                        out += [str(found.headers), found.text if found.status_code != 200 else ""]
                    found = server.chat(prompt, model=model, tools=[{"secret": prompt}])
                    out += [str(found.headers), found.text]
                server.client.post(
                    "/v1/completions", content=f"{{{prompt}", headers={"content-type": "application/json"}
                )
                for path in ("/metrics", "/openapi.json", "/v1/experts", "/v1/models", "/health"):
                    out.append(server.client.get(path).text)
                out += [repr(server.built), str(server.built.house.settings)]
            assert all(theirs in head["authorization"] and own not in str(head) for head in upstream.heads)
            out += server.lines
    with contextlib.suppress(RecipeError):
        run.build(
            experts_folder, load_serving(None, ["preload=[nobody]", "keys={app: OWN_KEY}"]), on_message=out.append
        )
    text = "\n".join([*out, caplog.text, *capfd.readouterr()])
    assert KEY not in text and prompt not in text
    assert "upstream_refused" in text and "expert_opened" in text  # or nothing was looked at


@pytest.mark.slow
def test_prompts_are_logged_where_that_is_asked_for(experts_folder: Path) -> None:
    with running(experts_folder, "log_prompts=true") as server:
        reply = server.chat("a prompt").json()["choices"][0]["message"]["content"]
        list(server.chat("a prompt", stream=True).iter_lines())
    for found in server.events("request", 2):
        assert found["prompt"] == [{"role": "user", "content": "a prompt"}] and found["reply"] == [reply]


def test_an_exception_is_logged_without_what_it_says(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a secret of the client")

    monkeypatch.setattr(server.built.house.routes, "choose", broken)
    found = server.chat()
    assert found.status_code == 500 and found.json()["error"]["code"] == "internal_error"
    assert found.headers["connection"] == "close"
    until = time.monotonic() + SECONDS
    while not (told := [one for one in server.events("server") if one.get("exception") == "RuntimeError"]):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert any("app.py" in place for place in told[0]["places"])
    assert "a secret of the client" not in "".join(server.lines) + found.text


@pytest.mark.slow
def test_a_client_cannot_write_a_line_of_the_log(server: Running) -> None:
    server.chat(model='x"}\n{"event": "forged"}', user="\x1b[2J")
    server.client.get("/v1/models/%0a%7b%22event%22%3a%22forged%22%7d")
    assert not server.events("forged") and all(line.isascii() and line.isprintable() for line in server.lines)
    text = server.client.get("/metrics").text
    assert "forged" not in text
