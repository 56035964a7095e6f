"""The evaluate stage end to end on tiny models: three files, the summary, the verdict."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from limbeck.evaluate.compare import METRICS
from limbeck.evaluate.stage import run_evaluate
from limbeck.models.hf import HfLM
from limbeck.system.rundir import RunDir
from limbeck.types import Row
from tests import tiny
from tests.evaluate.conftest import perturbed
from tests.recipes import tiny_recipe

KEYS = {"kl", "agreement", "perplexity", "ece", "parameters", "bytes", "tokens_per_second"}
RECIPE = tiny_recipe("evaluate.answers=2", "evaluate.answer_tokens=4", "evaluate.bootstrap=200")


@pytest.fixture(scope="module")
def models(tiny_tokenizer):
    teacher = HfLM.wrap(tiny.build_model("llama"), tiny_tokenizer, name="teacher")
    return teacher, {"student": perturbed(teacher, 0.02, 1, "s"), "twin": perturbed(teacher, 0.3, 2, "t")}


@pytest.fixture(scope="module")
def rows(tiny_tokenizer):
    made = []
    for number, row in enumerate(tiny.rows(15)):
        ids = np.array(tiny_tokenizer(row["text"])["input_ids"], dtype=np.int32)
        made.append(Row(f"r{number}", "heldout", row["topic"], row["text"], ids, ((1, len(ids)),), f"t:{number}"))
    return made


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("limbeck.evaluate.stage.SPEED_SECONDS", 0.0)


def run(tmp_path, teacher, students, rows, recipe=RECIPE):
    with RunDir.open(tmp_path) as folder:
        return run_evaluate(recipe, folder, teacher, students, rows, on_progress=lambda _: None)


@pytest.mark.slow
def test_summary_and_files(tmp_path, models, rows):
    teacher, students = models
    summary = run(tmp_path, teacher, students, rows)
    for who in ("teacher", "student", "twin"):
        assert set(summary[who]) == KEYS
        assert all(isinstance(value, float | int) and value >= 0 for value in summary[who].values())
    assert summary["teacher"]["kl"] == 0 and summary["teacher"]["agreement"] == 1
    verdict = summary["verdict"]
    assert verdict["state"] in ("good", "mixed") and "is closer to the teacher than its twin" in verdict["claim"]
    assert verdict["ce"]["student"][0] == pytest.approx(math.log(summary["student"]["perplexity"]))
    for part in ("kl", "agreement", "ce"):
        assert set(verdict[part]) == {"student", "twin", "difference"}
        for mean, low, high in verdict[part].values():
            assert low <= mean <= high
        assert part == "ce" or verdict[part]["student"][0] == summary["student"][part]
    assert any("Only 15 held-out rows" in warning for warning in summary["warnings"])
    assert json.loads(json.dumps(summary)) == summary

    folder = tmp_path / "evaluate"
    files = ["answers.json", "details.json", "first_choices.parquet", "scores.parquet"]
    assert sorted(path.name for path in folder.iterdir()) == files
    table = pq.read_table(folder / "scores.parquet", page_checksum_verification=True).to_pylist()
    assert len(table) == 3 * len(rows) and set(METRICS) < set(table[0])
    student = [line for line in table if line["model"] == "student"]
    mean = sum(line["kl"] for line in student) / sum(line["positions"] for line in student)
    assert mean == pytest.approx(summary["student"]["kl"])

    details = json.loads((folder / "details.json").read_text())
    assert details["positions"] == sum(row.num_supervised for row in rows) and details["rows"] == 15
    assert {topic["topic"] for topic in details["topics"]} == {"weather", "kitchen", "code"}
    assert details["topics"][0]["kl"]["student"][0] < details["topics"][0]["kl"]["twin"][0]
    assert sum(details["reliability"]["student"]["count"]) == details["positions"]
    assert 0 <= details["models"]["student"]["repeated_errors"] <= 1
    answers = json.loads((folder / "answers.json").read_text())
    assert len(answers) == 2 and set(answers[0]["answers"]) == {"teacher", "student", "twin"}
    assert len(answers[0]["answers"]["student"]["pieces"][0]) == 4


@pytest.mark.slow
def test_without_twin_topics_or_answers(tmp_path, models, rows):
    teacher, students = models
    bare = [Row(row.id, row.split, "", row.text, row.ids, row.spans, row.source) for row in rows]
    recipe = RECIPE.override("evaluate.answers=0")
    summary = run(tmp_path, teacher, {"student": students["student"]}, bare, recipe)
    assert "twin" not in summary and summary["verdict"]["helped"] is None
    assert set(summary["verdict"]["kl"]) == {"student"}
    details = json.loads((tmp_path / "evaluate" / "details.json").read_text())
    assert details["topics"] == []
    assert json.loads((tmp_path / "evaluate" / "answers.json").read_text()) == []


@pytest.mark.slow
def test_the_same_twice(tmp_path, models, rows):
    teacher, students = models
    first, second = (run(tmp_path / name, teacher, students, rows) for name in ("a", "b"))
    assert first["verdict"] == second["verdict"]
    assert (tmp_path / "a/evaluate/answers.json").read_bytes() == (tmp_path / "b/evaluate/answers.json").read_bytes()


@pytest.mark.slow
def test_a_teacher_that_is_always_sure_is_warned_of(tmp_path, tiny_tokenizer, rows):
    """Statement 34: above 0.999 at temperature 1, soft targets carry nothing."""
    model = tiny.build_model("granite", logits_scaling=1e-4)
    sure = HfLM.wrap(model, tiny_tokenizer, name="sure")
    summary = run(tmp_path, sure, {"student": perturbed(sure, 0.01, 0, "s")}, rows)
    assert any("hardly more than labels" in warning for warning in summary["warnings"])


@pytest.mark.slow
def test_many_topics_are_pooled(tmp_path, models, rows):
    teacher, students = models
    many = [Row(row.id, row.split, f"topic {n}", row.text, row.ids, row.spans, "") for n, row in enumerate(rows)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.evaluate.results.MOST_TOPICS", 4)
        run(tmp_path, teacher, students, many)
    topics = json.loads((tmp_path / "evaluate" / "details.json").read_text())["topics"]
    assert len(topics) == 5 and {"11 other topics"} == {t["topic"] for t in topics if t["rows"] == 11}
