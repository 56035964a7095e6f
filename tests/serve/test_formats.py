"""Exports as experts: llama.cpp and onnxruntime behind the endpoint write what they write in this process."""

from __future__ import annotations

import concurrent.futures
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import pytest

from limbeck.experts import Registry
from limbeck.export.command import judged_on
from limbeck.export.verified import WRITERS, ParityRows, export_artifact
from limbeck.models.open import open_hf, open_lm
from limbeck.models.sampling import write_one
from limbeck.recipe import make_export, packages_of
from limbeck.types import Sampling
from tests.serve.conftest import expert_card, running

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = ("The rain", "A cold wind blew", "Read me note 1, and then the second one.")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "quant"), [("gguf", "q8_0"), pytest.param("onnx", "int8", marks=pytest.mark.slow)])
def test_an_export_is_served(kind: str, quant: str, tiny_llama: Path, tmp_path: Path) -> None:
    settings = make_export(kind, quant, 1.0)  # a random model has no shape that eight bits would keep
    if missing := [name for name in (WRITERS[kind][0], *dict(packages_of(settings))) if find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    judged = judged_on(open_hf(tiny_llama, dtype="float32"), None, None)
    export_artifact(tiny_llama, tmp_path / "out", settings, ParityRows(judged.rows[:2], judged.text))
    Registry(tmp_path / "registry").add("code", "1.0.0", expert_card("code", format=kind), tmp_path / "out")
    lm, greedy = open_lm(tmp_path / "out"), Sampling(temperature=0.0, max_tokens=12)
    with running(tmp_path / "registry") as server, concurrent.futures.ThreadPoolExecutor() as pool:
        answers = pool.map(lambda text: server.complete(text, max_tokens=12, logprobs=1).json(), PROMPTS)
        for text, answer in zip(PROMPTS, answers, strict=True):
            alone = list(write_one(lm, np.array(lm.tokenizer(text)["input_ids"], dtype=np.int32), greedy))
            choice = answer["choices"][0]
            assert choice["text"] == "".join(one.text for one in alone)
            assert choice["logprobs"]["token_logprobs"] == pytest.approx([one.logp for one in alone], abs=1e-4)
        stats = server.built.house.pool.places["code@1.0.0"].opened.engine.stats
        assert stats.tokens == 36 and 0 < stats.most_memory_bytes >= stats.memory_bytes
        assert server.chat("Read me note 1.").status_code == 200
