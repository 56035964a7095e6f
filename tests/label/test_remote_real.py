"""A real server that nobody here wrote (`transformers serve`), with the fault server in front of it."""

import importlib.util
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from limbeck.endpoint import rate_limit
from tests.endpoint.fake_server import FakeServer
from tests.label.asking import KEY, ask, failed_of, files_of, recipe_of, rows_of

SERVE = Path(sys.executable).with_name("transformers")
MISSING = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SERVE.exists() or bool(MISSING), reason=f"transformers serve lacks {', '.join(MISSING)}"),
]


@pytest.fixture(scope="module")
def real(tiny_folder, tmp_path_factory):
    """URL and model name of a server with the tiny model."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    shutil.copytree(tiny_folder("llama"), folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (folder.parent / "log").open("w")
    command = [str(SERVE), "serve", str(folder), "--device", "cpu", "--port", str(port)]
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder.parent)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, (folder.parent / "log").read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def test_a_real_server_through_faults(real, tiny_tokenizer, tmp_path, monkeypatch):
    """Greedy replies are the model's own, whatever went wrong on the way; nothing is asked twice in vain."""
    monkeypatch.setattr(rate_limit, "FIRST_DELAY", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    url, model = real
    rows = rows_of(tiny_tokenizer, 6)
    settings = [f"teacher.model={model}", "trace.mode.temperature=0", "teacher.timeout_seconds=30"]
    stores = {}
    for name, faults in {"clean": [], "spoilt": ["429", "cut", "garbage", "reset", "500"]}.items():
        with FakeServer(upstream=url) as server:
            server.script = lambda seen, f=faults: f[(seen.number) % len(f)] if f and seen.attempt == 0 else None
            store = ask(recipe_of(server.url, *settings), tmp_path / name, tiny_tokenizer, rows)
            assert server.counts.total() == 6 * (1 + bool(faults)) and len(store.traces()) == 6
        assert not failed_of(tmp_path / name)
        stores[name] = files_of(tmp_path / name)
    assert stores["clean"] == stores["spoilt"]
    [trace] = [trace for trace in store.traces() if trace.row_id == rows[0].id]
    assert trace.meta["model"] == model and trace.meta["finish_reason"] == "length"
    assert not tiny_tokenizer.decode(trace.ids).endswith("<|im_end|>")
