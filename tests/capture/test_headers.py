"""What is read out of heads, and how an upstream's address becomes a path."""

from __future__ import annotations

from pathlib import Path

import h11
import pytest

from limbeck.capture import headers as heads
from limbeck.capture.settings import CaptureSettings, parse_upstream


def request(target: str, *headers: tuple[str, str], method: str = "POST") -> h11.Request:
    return h11.Request(method=method, target=target, headers=[("Host", "h"), *headers])


def test_secrets():
    found = heads.secrets(
        request(
            "/v1/chat/completions?api-version=2024-10-21&api-key=q%2Fuery-secret&sig=signature1",
            ("Authorization", "Bearer token-of-mine"),
            ("x-api-key", "plain-key"),
            ("Cookie", "theme=dark-blue; session=0123456789abcdef0123"),
        )
    )
    assert {"token-of-mine", "plain-key", "q%2Fuery-secret", "q/uery-secret", "signature1"} <= set(found)
    assert "0123456789abcdef0123" in found
    assert not {"2024-10-21", "dark-blue"} & set(found)  # what many texts hold is no secret


@pytest.mark.parametrize(
    ("method", "target", "recorded"),
    [
        ("POST", "/v1/chat/completions", True),
        ("POST", "/v1/completions", True),
        ("POST", "/openai/deployments/x/chat/completions?api-version=1", True),
        ("GET", "/v1/chat/completions", False),
        ("POST", "/v1/embeddings", False),
        ("POST", "/v1/chat/completions/id", False),
    ],
)
def test_what_is_recorded(method, target, recorded):
    assert heads.is_recorded(request(target, method=method)) == recorded


@pytest.mark.parametrize(
    ("url", "tls", "port", "path"),
    [
        ("https://api.example", True, 443, b""),
        ("https://api.example/v1/", True, 443, b""),
        ("http://[::1]:8000/v1", False, 8000, b""),
        ("https://router.example/api/v1", True, 443, b"/api"),
        ("https://x.example/openai", True, 443, b"/openai"),
    ],
)
def test_upstreams(url, tls, port, path):
    found = parse_upstream(url)
    assert (found.tls, found.port, found.path) == (tls, port, path)
    CaptureSettings(url, Path("store"))


def test_ids_that_are_taken_over():
    assert heads.named_id(request("/", ("X-Request-ID", "req_1-a.b"))) == "req_1-a.b"
    assert heads.named_id(request("/", ("X-Request-ID", "a b"), ("x-client-request-id", "c"))) == "c"
    assert heads.named_id(request("/", ("X-Request-ID", "x" * 200))) is None
