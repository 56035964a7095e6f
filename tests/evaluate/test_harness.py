"""lm-evaluation-harness on a tiny model, with local task files: its figures against our own."""

from __future__ import annotations

import builtins
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from limbeck.errors import MissingExtra, RecipeError
from limbeck.evaluate.harness import run_harness
from limbeck.models.hf import HfLM
from limbeck.recipe import Harness
from limbeck.types import Sampling
from tests import tiny

if TYPE_CHECKING:
    from pathlib import Path

    from limbeck.types import LocalLM

CHOICES = """\
task: tiny_choices
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITTEN = """\
task: tiny_written
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{written}}"
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def lm() -> HfLM:
    return HfLM.wrap(tiny.build_model("llama"), tiny.build_tokenizer(), name="tiny")


@pytest.fixture(scope="module")
def folder(lm: HfLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("harness tasks")
    write_tasks(path, lm)
    return path


def write_tasks(path: Path, lm: LocalLM) -> None:
    """Twelve questions with three choices each, and what the model itself would write, wrong in every third."""
    docs = []
    for number, row in enumerate(tiny.rows()[:12]):
        words = row["text"].split()
        question = " ".join(words[:4])
        ids = np.asarray(lm.tokenizer(question)["input_ids"], dtype=np.int32)
        reply = lm.generate([ids], Sampling(temperature=0.0, max_tokens=6, stop=("\n",)))[0][0]
        written = reply.text.split("\n")[0] if number % 3 else "something else"
        choices = [f" {words[-1]}", " seven", " old stones"]
        docs.append({"question": question, "choices": choices, "label": number % 3, "written": written})
    (path / "data.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    for name, text in (("choices", CHOICES), ("written", WRITTEN)):
        (path / f"{name}.yaml").write_text(text.replace("DATA", json.dumps(str(path / "data.jsonl"))))


def _docs(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]


def _log_likelihood(lm: HfLM, context: str, choice: str) -> float:
    before, whole = (lm.tokenizer(text)["input_ids"] for text in (context, context + choice))
    with torch.no_grad():
        logp_TV = lm.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return float(sum(logp_TV[place - 1, whole[place]] for place in range(len(before), len(whole))))


@pytest.fixture(scope="module")
def found(lm: HfLM, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    pytest.importorskip("lm_eval")
    settings = Harness(tasks=("tiny_choices", "tiny_written"), include_path=str(folder), batch_size=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        return run_harness({"student": lm}, settings, seed=0, chat=False)


@pytest.mark.slow
def test_choices_are_scored_as_we_score_them(lm: HfLM, folder: Path, found: dict) -> None:
    docs = _docs(folder)
    picked = [int(np.argmax([_log_likelihood(lm, doc["question"], c) for c in doc["choices"]])) for doc in docs]
    ours = np.mean([pick == doc["label"] for pick, doc in zip(picked, docs, strict=True)])
    assert found["student"]["tiny_choices"]["acc,none"] == pytest.approx(ours)
    assert 0 < ours < 1  # or the test would not tell right from wrong


def test_written_answers_are_those_of_the_model(found: dict) -> None:
    assert found["student"]["tiny_written"]["exact_match,none"] == pytest.approx(8 / 12)


def test_metrics_have_their_standard_errors(found: dict) -> None:
    """Of a mean over twelve questions, by its closed form."""
    for task, metric in (("tiny_choices", "acc"), ("tiny_written", "exact_match")):
        share = found["student"][task][f"{metric},none"]
        error = found["student"][task][f"{metric}_stderr,none"]
        assert error == pytest.approx((share * (1 - share) / 11) ** 0.5)


@pytest.mark.slow
def test_an_unknown_task_is_refused_by_name(lm: HfLM) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(RecipeError, match="no_such_task"):
        run_harness({"student": lm}, Harness(tasks=("no_such_task",)), seed=0, chat=False)


def test_without_the_package_the_install_line_is_named(lm: HfLM, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".")[0] == "lm_eval":
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtra, match=r"limbeck\[eval\]"):
        run_harness({"student": lm}, Harness(tasks=("any",)), seed=0, chat=False)
