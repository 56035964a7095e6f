"""Programs that nobody here wrote, against the server: schemathesis on its schema, lm-evaluation-harness on its scores;
and the server as its own process, asked to end or killed."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from limbeck.evaluate.harness import run_harness, task_manager
from limbeck.experts import Registry
from limbeck.models.open import open_lm
from limbeck.recipe import Harness
from limbeck.serve.server import drained
from limbeck.system.atomic import verify_dir
from tests.endpoint.servers import free_port
from tests.evaluate.test_harness import write_tasks
from tests.serve.conftest import KEY, SECONDS, expert_card, running, teacher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.serve.conftest import Running

# ---- schemathesis ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_schema_is_kept(server: Running) -> None:
    """Every operation, with requests that fit the schema and ones that do not: no failure of the server, and every
    answer as the schema says."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis import checks

    schema = schemathesis.openapi.from_dict(server.client.get("/openapi.json").json())
    wanted = [
        checks.not_a_server_error,
        *checks.CHECKS.get_by_names(
            ["status_code_conformance", "content_type_conformance", "response_schema_conformance"]
        ),
    ]
    seen: dict[str, set[int]] = {}
    for result in schema.get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy())
        @settings(max_examples=25, phases=[Phase.generate], deadline=None, suppress_health_check=list(HealthCheck))
        def fits(case: Any) -> None:
            if isinstance(case.body, dict):
                case.body = {**case.body, "model": "code", "stream": False}
            response = case.call(base_url=server.url)
            seen.setdefault(case.operation.label, set()).add(response.status_code)
            case.validate_response(response, checks=wanted)

        fits()
    assert "POST /v1/chat/completions" in seen and "GET /v1/models" in seen
    assert all(code < 500 for codes in seen.values() for code in codes)
    assert {200, 400} <= seen["POST /v1/chat/completions"] | seen["POST /v1/completions"]


# ---- lm-evaluation-harness -------------------------------------------------------------------------------------------


NO_RETRIES = """
class RetryError(Exception): pass
def stop_after_attempt(*_args, **_kwargs): return None
def wait_exponential(*_args, **_kwargs): return None
def retry(*_args, **_kwargs): return lambda function: function
"""


@pytest.mark.slow
def test_the_harness_finds_the_same_scores(
    server: Running, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`local-completions` against the server, and the harness's own `hf` on the model in this process."""
    lm_eval: Any = pytest.importorskip("lm_eval")
    if find_spec("tenacity") is None:  # of the harness's extra `api`: all it does is try again
        (tmp_path / "tenacity.py").write_text(NO_RETRIES)
        monkeypatch.syspath_prepend(str(tmp_path))
        for name in [name for name in sys.modules if name.startswith("lm_eval.models.")]:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lm = open_lm(tiny_llama, dtype="float32")
    write_tasks(tmp_path, lm)
    settings = Harness(tasks=("tiny_choices", "tiny_written"), include_path=str(tmp_path), batch_size=4)
    own = run_harness({"model": lm}, settings, seed=0, chat=False)["model"]

    from lm_eval.models.openai_completions import LocalCompletionsAPI

    wrap: Any = LocalCompletionsAPI
    told = {"tokenizer": str(tiny_llama), "tokenizer_backend": "huggingface", "max_length": 128, "batch_size": 4}
    model = wrap(base_url=f"{server.url}/v1/completions", model="code", num_concurrent=1, max_retries=1, **told)
    served = lm_eval.simple_evaluate(
        model, tasks=list(settings.tasks), task_manager=task_manager(settings), bootstrap_iters=0, log_samples=False
    )["results"]
    for task, metric in (("tiny_choices", "acc,none"), ("tiny_written", "exact_match,none")):
        assert served[task][metric] == pytest.approx(own[task][metric])
        assert 0 < own[task][metric] < 1  # or right could not be told from wrong


# ---- a process of its own --------------------------------------------------------------------------------------------


class Process:
    """`limbeck serve` as a user starts it."""

    def __init__(self, registry: Path, log: Path, *settings: str) -> None:
        self.port, self.log = free_port(), log
        command = [sys.executable, "-m", "limbeck", "serve", str(registry), f"port={self.port}", *settings]
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "APP_KEY": KEY})
        self.client = httpx2.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            timeout=60,
            trust_env=False,
            headers={"authorization": f"Bearer {KEY}"},
        )

    def ready(self) -> Process:
        until = time.monotonic() + 90
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if self.client.get("/health").status_code == 200:
                    return self
            except httpx2.HTTPError:
                time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def chat(self, model: str = "code", **more: Any) -> httpx2.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Read me note 1."}], **more}
        return self.client.post("/v1/chat/completions", json=body)

    def end(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)


@pytest.fixture
def home(experts_folder: Path, tmp_path: Path) -> Path:
    """A copy of the registry with one expert whose weights are damaged."""
    home = tmp_path / "registry"
    shutil.copytree(experts_folder, home)
    Registry(home).add("broken", "1.0.0", expert_card("broken"), home / "experts" / "code" / "1.0.0" / "model")
    weights = home / "experts" / "broken" / "1.0.0" / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.unlink()  # it may be a link to the good one
    weights.write_bytes(data)
    return home


@pytest.fixture
def process(home: Path, tmp_path: Path) -> Iterator[Process]:
    one = Process(home, tmp_path / "log", "keys={app: APP_KEY}", "drain_seconds=20", "preload=[code]")
    try:
        yield one.ready()
    finally:
        one.end()


def files_of(registry: Path) -> dict[str, bytes]:
    return {str(path.relative_to(registry)): path.read_bytes() for path in registry.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_corrupt_expert_is_refused_alone_and_a_kill_loses_nothing(
    process: Process, home: Path, tmp_path: Path
) -> None:
    before = files_of(home)
    found = process.chat("broken", max_tokens=2)
    assert found.status_code == 503 and found.json()["error"]["code"] == "expert_damaged"
    assert "SHA-256" in found.json()["error"]["message"] and str(home) not in found.text
    assert process.chat(max_tokens=2).status_code == process.chat("weather", max_tokens=2).status_code == 200
    assert "broken/1.0.0" in process.log.read_text()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(process.chat, ("code", "weather")[n % 2], max_tokens=100, n=4) for n in range(8)]
        time.sleep(0.15)
        os.kill(process.process.pid, signal.SIGKILL)
        assert any(isinstance(one.exception(30), httpx2.HTTPError) for one in asked), "none was under way"
    assert process.process.wait(10) == -signal.SIGKILL
    assert files_of(home) == before
    assert verify_dir(home / "experts" / "code" / "1.0.0") is None
    again = Process(home, tmp_path / "again", "keys={app: APP_KEY}")
    try:
        assert again.ready().chat(max_tokens=2).status_code == 200
    finally:
        again.end()
    assert KEY not in process.log.read_text() + (tmp_path / "again").read_text()


@pytest.mark.slow
def test_sigterm_lets_answers_finish(process: Process) -> None:
    """A stream that is under way is sent to its end; health says draining; new requests are told to come later; the
    exit code is 0."""
    process.chat(max_tokens=2)
    body = {"model": "code", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 110, "n": 8, "stream": True}
    with process.client.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        for _ in range(12):
            next(lines)
        process.process.send_signal(signal.SIGTERM)
        seen = set()
        until = time.monotonic() + SECONDS
        with httpx2.Client(base_url=process.client.base_url, headers=process.client.headers, trust_env=False) as other:
            while not seen and time.monotonic() < until and process.process.poll() is None:
                health = other.get("/health")
                if health.status_code == 503:
                    seen.add(health.json()["status"])
                    late = other.post("/v1/chat/completions", json=body)
                    assert late.status_code == 503 and late.json()["error"]["code"] == "draining"
                    assert late.headers["retry-after"]
        rest = list(lines)
    assert seen == {"draining"} and "data: [DONE]" in rest
    assert sum('"finish_reason":"' in line for line in rest) == 8
    assert process.process.wait(30) == 0
    assert '"event": "stopped"' in process.log.read_text()


def test_draining_has_a_bound(experts_folder: Path) -> None:
    """What is under way when the time is over is cut, and the server ends: here a teacher that never answers."""
    with contextlib.ExitStack() as held:
        peer = held.enter_context(teacher("hang"))
        server = held.enter_context(running(experts_folder, f"upstream.url={peer.url}", "upstream.model=teacher"))
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            asked = pool.submit(lambda: [server.chat(model=name).status_code for name in ("teacher", "code")])
            until = time.monotonic() + SECONDS
            while not peer.seen and time.monotonic() < until:
                time.sleep(0.005)
            asyncio.run_coroutine_threadsafe(
                drained(server.built.gate, 0.05, server.built.log), loop_of(server)
            ).result(SECONDS)
            assert asked.result(SECONDS) == [503, 503]
        assert server.events("cut")[0]["under_way"] == 1
        assert server.client.get("/health").status_code == 503


def loop_of(server: Running) -> asyncio.AbstractEventLoop:
    return next(iter(server.built.gate.busy.values())).get_loop()
