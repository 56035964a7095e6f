"""Tasks in a whole run: problems of a seed are read, answered by all models, judged, kept, and shown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import limbeck
from limbeck.check import estimate
from limbeck.check.recipe import check_recipe
from limbeck.data.synthetic import part_of
from limbeck.errors import DataError
from limbeck.evaluate.task_stage import choose_questions, run_tasks, task_files, task_settings_of
from limbeck.models.hf import HfLM
from limbeck.recipe import Recipe
from limbeck.recipe.rules.check import check_static
from limbeck.types import Row, Sampling
from tests import tiny

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow  # whole runs

ASKED = {"kind": "problems", "family": "sum", "levels": [1, 2], "count": 12, "part": 3}
TASKS = {"source": ASKED, "limit": 6, "n": 2, "decoding": {"kind": "r1"}, "max_tokens": 6, "ks": [1, 2]}


def recipe_of(model: Path, **evaluate: object) -> Recipe:
    tree = {
        "name": "tiny",
        "teacher": {"path": str(model), "dtype": "float32"},
        "data": {
            "source": {"kind": "problems", "levels": [2, 3], "count": 40},
            "max_length": 96,
            "chat_template": False,
            "holdout": 0.3,
        },
        "student": {"kind": "prune", "layers": 2},
        "train": {"budget": {"kind": "steps", "steps": 2}, "batch_tokens": 200, "precision": "float32", "twin": True},
        "evaluate": {"answers": 1, "answer_tokens": 4, "bootstrap": 50, **evaluate},
    }
    return Recipe.model_validate(tree)


@pytest.fixture(scope="module")
def finished(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    run = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.evaluate.stage.SPEED_SECONDS", 0.0)
        return run, limbeck.run_recipe(recipe_of(tiny_llama, tasks=TASKS), run, estimate=False)


def test_all_models_answer_the_same_problems(finished: tuple[Path, dict]) -> None:
    run, _ = finished
    asked = []
    for name in ("teacher", "student", "twin"):
        head, *lines = [
            json.loads(line) for line in (run / "evaluate/tasks" / f"{name}.jsonl").read_text().splitlines()
        ]
        assert head["problems"] == 6 and len(lines) == 12
        asked.append([(line["problem"], line["prompt"], line["reference"]) for line in lines])
        for line in lines:
            first, second = line["prompt"].strip().split("+")
            assert int(first) + int(second) == int(line["reference"])
            assert part_of(line["prompt"].strip()) == 3
    assert asked[0] == asked[1] == asked[2]


def test_the_summary_has_scores_with_intervals(finished: tuple[Path, dict]) -> None:
    run, summary = finished
    found = json.loads((run / "evaluate/tasks.json").read_text())
    assert summary["tasks"]["models"] == found["models"]
    assert found["problems"] == 6 and found["n"] == 2
    assert found["decoding"] == {"temperature": 0.6, "top_p": 0.95}
    for name in ("teacher", "student", "twin"):
        for metric in ("pass@1", "pass@2", "cons@2", "truncated", "no_answer", "tokens"):
            mean, low, high = found["models"][name][metric]
            assert low <= mean <= high
    assert set(found["difference"]) == set(found["metrics"])
    assert set(found["inherited"]) == {"student", "twin"}


def test_the_report_shows_them(finished: tuple[Path, dict]) -> None:
    page = (finished[0] / "report.html").read_text()
    assert "Problems answered" in page and "pass@1" in page and "errors repeated" in page


def test_models_are_not_asked_again(finished: tuple[Path, dict], tiny_llama: Path, monkeypatch) -> None:
    run, summary = finished
    recipe = recipe_of(tiny_llama, tasks=TASKS)
    monkeypatch.setattr(HfLM, "generate", None)
    lms = {name: HfLM.open(path, dtype="float32") for name, path in _folders(run, tiny_llama).items()}
    again = run_tasks(recipe, [run / "evaluate"], lms, [], on_progress=lambda _: None, stop_asked=lambda: False)
    assert again["models"] == summary["tasks"]["models"]


def _folders(run: Path, teacher: Path) -> dict[str, Path]:
    return {"teacher": teacher, **{role: run / "train" / role / "artifact" for role in ("student", "twin")}}


@pytest.fixture
def lm(tiny_tokenizer) -> HfLM:
    return HfLM.wrap(tiny.build_model("llama"), tiny_tokenizer, name="tiny")


def test_without_a_source_the_held_out_rows_are_asked(lm: HfLM, tiny_llama: Path) -> None:
    recipe = recipe_of(tiny_llama, tasks={"limit": 2})
    ids = np.arange(3, 11, dtype=np.int32)
    rows = [Row(f"r{n}", "heldout", "", "text", ids, ((5, 8),), "here", reference=str(n)) for n in range(4)]
    assert recipe.evaluate.tasks is not None
    found = choose_questions(recipe, recipe.evaluate.tasks, lm, [*rows, rows[0]])
    assert len(found) == 2 and {one.id for one in found} <= {row.id for row in rows}
    with pytest.raises(DataError, match=r"evaluate\.tasks"):
        choose_questions(recipe, recipe.evaluate.tasks, lm, [Row("r", "heldout", "", "", ids, ((5, 8),), "here")])


def test_the_files_of_problems_are_part_of_what_is_remembered(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    recipe = recipe_of(tiny_llama, tasks={"source": {"kind": "files", "path": str(path), "prompt": "q"}})
    seen = []
    for answer in ("4", "5"):
        path.write_text(json.dumps({"q": "2+2", "a": answer}) + "\n")
        seen.append(task_files(recipe))
    assert [name for name, _ in seen[0]] == [str(path)] and seen[0] != seen[1]
    assert task_files(recipe_of(tiny_llama, tasks=TASKS)) == [] == task_files(recipe_of(tiny_llama))


@pytest.mark.parametrize(
    ("decoding", "temperature", "top_p"),
    [({"kind": "greedy"}, 0.0, 1.0), ({"kind": "r1"}, 0.6, 0.95), ({"kind": "sampled", "top_p": 0.5}, 1.0, 0.5)],
)
def test_decodings(tiny_llama: Path, decoding: dict, temperature: float, top_p: float) -> None:
    tasks = recipe_of(tiny_llama, tasks={"decoding": decoding}).evaluate.tasks
    assert tasks is not None
    sampling = task_settings_of(tasks, 3).sampling
    assert (sampling.temperature, sampling.top_p, sampling.n, sampling.seed) == (temperature, top_p, 1, 3)


@pytest.mark.parametrize(
    ("verifier", "reply", "answer", "right"),
    [
        ({"kind": "exact"}, "<think>6*7</think> 42 ", "42", True),
        ({"kind": "exact"}, "<think>6*7=42", None, False),
        ({"kind": "exact", "answer": "marker"}, "It is\n#### 42", "42", True),
        ({"kind": "numeric"}, "that makes $42.00.", "42", True),
        ({"kind": "numeric"}, "that makes forty-two", None, False),
        ({"kind": "math"}, "so \\boxed{42}", "42", True),
    ],
)
def test_votes_are_counted_by_what_the_verifier_reads(
    tiny_llama: Path, verifier: dict, reply: str, answer: str | None, right: bool
) -> None:
    tasks = recipe_of(tiny_llama, tasks={"verifier": verifier}).evaluate.tasks
    assert tasks is not None
    exam = task_settings_of(tasks, 0)
    assert exam.extract(reply) == answer
    assert list(exam.judge([(reply, "42")])) == [right]


@pytest.mark.parametrize(
    ("tasks", "where"),
    [
        ({"n": 4}, "evaluate.tasks.n"),
        ({"n": 4, "decoding": {"kind": "r1"}, "ks": [1, 8]}, "evaluate.tasks.ks"),
        ({"n": 4, "decoding": {"kind": "r1"}, "ks": [2, 2]}, "evaluate.tasks.ks"),
        ({"ks": []}, "evaluate.tasks.ks"),
        ({"verifier": {"kind": "judge", "path": "judge"}}, "evaluate.tasks.verifier.kind"),
    ],
)
def test_contradictions_are_found(tiny_llama: Path, tasks: dict, where: str) -> None:
    assert where in [found.where for found in check_static(recipe_of(tiny_llama, tasks=tasks))]


def test_a_sound_section_is_let_through(tiny_llama: Path) -> None:
    assert not check_static(recipe_of(tiny_llama, tasks=TASKS))


@pytest.mark.slow
def test_the_estimate_counts_every_reply(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three models, six problems, replies of six tokens: at a second for a token of each reply, 108 s."""

    def writing(lm: HfLM, prompts: list[np.ndarray], sampling: Sampling) -> float:
        return float(len(prompts) * sampling.max_tokens)

    monkeypatch.setattr(estimate, "_writing_seconds", writing)
    without, asked = (
        check_recipe(recipe_of(tiny_llama, **more)).estimate["evaluate"]["seconds"] for more in ({}, {"tasks": TASKS})
    )
    assert asked - without == pytest.approx(108, abs=2)


def test_a_reply_is_reading_and_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds to read the prompts, half a second for a token: 52 s for a hundred."""
    clock = [0.0]

    class Slow:
        def generate(self, prompts: list[np.ndarray], sampling: Sampling) -> None:
            clock[0] += 2 + sampling.max_tokens / 2

    monkeypatch.setattr(estimate.time, "monotonic", lambda: clock[0])
    slow: Any = Slow()
    assert estimate._writing_seconds(slow, [], Sampling(max_tokens=100)) == pytest.approx(52)
    assert estimate._writing_seconds(slow, [], Sampling(max_tokens=1)) == pytest.approx(2.5)
