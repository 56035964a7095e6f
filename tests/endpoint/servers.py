"""Real servers that nobody here wrote, on loopback, in processes of their own: started, awaited, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2

if TYPE_CHECKING:
    from collections.abc import Iterator

VLLM_PYTHON = "LIMBECK_VLLM_PYTHON"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def started(command: list[str], url: str, ready: str, log: Path, **environment: str) -> Iterator[str]:
    """Run a server until the block ends; yields `url` when `url + ready` answers. Its output is in `log`."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env={**inherited, **environment}, start_new_session=True
        )
        try:
            _await(process, url + ready, log)
            yield url
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


def _await(process: subprocess.Popen[bytes], url: str, log: Path, seconds: float = 100.0) -> None:
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        assert process.poll() is None, f"the server ended: {log.read_text(errors='replace')[-2000:]}"
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(url, timeout=2).status_code == 200:
                return
        time.sleep(0.2)
    raise AssertionError(f"no answer from {url} in {seconds:g} s: {log.read_text(errors='replace')[-2000:]}")


@contextlib.contextmanager
def vllm(model: Path, log: Path, *, max_logprobs: int = 128) -> Iterator[str]:
    """vLLM's server for the model `teacher`, in float32 on the CPU; yields its base URL."""
    port = free_port()
    command = [os.environ[VLLM_PYTHON], "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "teacher", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", "128", "--max-logprobs", str(max_logprobs)]
    root = f"http://127.0.0.1:{port}"
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "2"}
    with started(command, root, "/health", log, **quiet):
        yield f"{root}/v1"


@contextlib.contextmanager
def transformers_serve(model: Path, log: Path) -> Iterator[str]:
    """`transformers serve`; the model's name is its path. Yields its base URL."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model)]
    command += ["--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    root = f"http://127.0.0.1:{port}"
    with started(command, root, "/health", log):
        yield f"{root}/v1"
