"""Events of another server, in whatever pieces they come."""

import asyncio
from types import SimpleNamespace

import pytest

from limbeck.serve import upstream
from limbeck.serve.errors import ApiError

REMOTE = upstream.UpstreamModel("teacher", "http://host", "model")


def data_of(*parts: bytes) -> list[str]:
    async def pieces():
        for part in parts:
            yield part

    async def work():
        return [data async for data in upstream._data(SimpleNamespace(aiter_bytes=pieces), REMOTE)]

    return asyncio.run(work())


@pytest.mark.parametrize("end", [b"\n\n", b"\n", b"", b" \r\n"])
def test_the_last_event_may_lack_its_blank_line(end):
    found = data_of(b'data: {"a":\ndata: "\xc3', b'\xa9"}\r\n\r', b"\ndata: [DONE]" + end)
    assert [data.strip() for data in found] == ['{"a":\n"é"}', "[DONE]"]


def test_half_an_event_is_none():
    assert data_of(b"data: {}\n\ndata: {") == ["{}"]


def test_an_event_that_does_not_end_is_refused(monkeypatch):
    monkeypatch.setattr(upstream, "MOST_BYTES", 100)
    assert len(data_of(*[b"data: {}\n\n"] * 100)) == 100
    with pytest.raises(ApiError, match="no answer that can be read"):
        data_of(*[b"data: {}\n"] * 100)
