"""What every test starts from: one thread, no network, shapes checked, tiny models.

Fixtures with models or files are made once a session and shared: treat what they return as read-only, and copy before
changing (`copy.deepcopy(model)`, `shutil.copytree(folder, tmp_path / "copy")`).
"""

from __future__ import annotations

import logging
import os

# Before torch, transformers or matplotlib are imported anywhere, and inherited by the processes that tests start.
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
for name in ("torchao", "torch.utils._pytree"):  # they warn on import of kernels that this machine has not
    logging.getLogger(name).setLevel(logging.ERROR)
os.environ.update({**THREADS, **OFFLINE, "MPLBACKEND": "agg"})

import random
import signal
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import settings

from tests import shapes, tiny

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerFast

pytest_plugins = ("pytester", "tests.tiers")

shapes.watch("limbeck.losses", "limbeck.types")

# The same examples in every run: a change is judged by what it changes. `HYPOTHESIS_PROFILE=search` looks further.
settings.register_profile("same", derandomize=True, deadline=None, database=None)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process for each core that we may use, each of some 2 GiB; a bare `pytest` runs in one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def pytest_configure() -> None:
    torch.set_num_threads(1)
    # A job in the background of a script (or under nohup) begins with signals ignored, and so would what tests start.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def short_looks() -> Iterator[None]:
    """A run's evaluation times each model for seconds; figures of speed are none that a test looks at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.evaluate.stage.SPEED_SECONDS", 0.01)
        yield


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 384 tokens with a ChatML template; pad 0, start 1, end 2."""
    return tiny.build_tokenizer()


@pytest.fixture(scope="session")
def tiny_model() -> Callable[[str], PreTrainedModel]:
    """`tiny_model("gemma2")`: a new random model in memory, yours to change."""
    return tiny.build_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_folder("gemma2", seed=1)`: a saved model of that family with the tiny tokenizer; made once a session."""
    made: dict[str, Path] = {}

    def folder(family: str = "llama", *, seed: int = 0, **changes: object) -> Path:
        key = f"{family}-{seed}-{sorted(changes.items())}"
        if key not in made:
            made[key] = tiny.save_folder(tmp_path_factory.mktemp(family), family, seed=seed, **changes)
        return made[key]

    return folder


@pytest.fixture(scope="session")
def tiny_llama(tiny_folder: Callable[..., Path]) -> Path:
    """Folder of a tied Llama of 3 layers, hidden 64, head_dim 16, vocabulary 384."""
    return tiny_folder("llama")


@pytest.fixture(scope="session")
def text_jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 plain-text rows {"text", "topic"} over three topics."""
    return tiny.write_jsonl(tmp_path_factory.mktemp("text") / "text.jsonl", tiny.rows())


@pytest.fixture(scope="session")
def chat_jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 conversations {"messages", "topic"}, every fourth of two turns."""
    return tiny.write_jsonl(tmp_path_factory.mktemp("chat") / "chat.jsonl", tiny.chats())
