"""Runs whose teacher has spoken already: its words are the data, and nobody is asked."""

import json
import shutil

import pytest

import limbeck
from limbeck.errors import RecipeError
from limbeck.recipe import Recipe
from tests.pipeline.test_run import recipe_of


def words(model, data, **changes) -> Recipe:
    student = {"kind": "scratch", "like": str(model), "hidden_size": 32, "layers": 2, "heads": 2}
    settings = {
        "teacher": {"kind": "text", "name": "someone", "licence": "cc-by-4.0"},
        "trace": {"target": {"kind": "text"}},
        "student": student,
        "objective": {"ce_weight": 1.0},
    }
    return recipe_of(model, data, **(settings | changes))


@pytest.mark.slow
@pytest.mark.parametrize("student", ["scratch", "pretrained"])
def test_a_student_learns_from_words_alone(tiny_llama, text_jsonl, tmp_path, student):
    changes = {} if student == "scratch" else {"student": {"kind": "pretrained", "path": str(tiny_llama)}}
    recipe = words(tiny_llama, text_jsonl, **changes)
    assert limbeck.check_recipe(recipe).problems == []
    summary = limbeck.run_recipe(recipe, tmp_path / "run")
    assert "teacher" not in summary
    assert summary["student"]["kl"] == pytest.approx(json.loads(json.dumps(summary["student"]["kl"])))
    assert "known by its words only" in summary["verdict"]["sentence"]
    assert not (tmp_path / "run" / "traces").exists()
    card = (tmp_path / "run" / "train" / "student" / "artifact" / "README.md").read_text()
    assert "someone" in card and "cc-by-4.0" in card
    assert "someone" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
def test_kl_to_words_is_cross_entropy(tiny_llama, text_jsonl, tmp_path):
    import math

    summary = limbeck.run_recipe(words(tiny_llama, text_jsonl), tmp_path / "run")
    assert math.exp(summary["student"]["kl"]) == pytest.approx(summary["student"]["perplexity"], rel=1e-5)


@pytest.mark.slow
def test_a_folder_of_config_and_tokenizer_is_enough(tiny_llama, text_jsonl, tmp_path):
    like = tmp_path / "like"
    shutil.copytree(tiny_llama, like, ignore=shutil.ignore_patterns("*.safetensors"))
    limbeck.run_recipe(words(like, text_jsonl), tmp_path / "run", until="student", estimate=False)
    assert (tmp_path / "run" / "student" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"student": {"kind": "prune", "layers": 1}}, "student.kind is prune"),
        ({"student": {"kind": "scratch", "parameters": "1M"}}, "student.like is missing"),
        ({"trace": {"mode": {"kind": "generate"}, "target": {"kind": "text"}}}, "has spoken already"),
        ({"trace": {}}, "has no distributions"),
        ({"objective": {"ce_weight": 0.5}}, "set it to 1"),
    ],
)
def test_what_a_teacher_of_words_cannot_do(tiny_llama, text_jsonl, changes, said):
    found = limbeck.check_recipe(words(tiny_llama, text_jsonl, **changes), estimate=False)
    assert said in " ".join(problem.message for problem in found.problems)


def test_like_has_no_effect_with_a_teacher_here(tiny_llama, text_jsonl, tmp_path):
    student = {"kind": "scratch", "like": str(tiny_llama), "hidden_size": 32, "layers": 2, "heads": 2}
    with pytest.raises(RecipeError, match=r"student\.like has no effect"):
        limbeck.run_recipe(recipe_of(tiny_llama, text_jsonl, student=student), tmp_path / "run")


@pytest.mark.slow
def test_text_of_a_teacher_that_writes(tiny_llama, text_jsonl, tmp_path):
    """A teacher in this process, of which nothing but its replies is kept."""
    trace = {"mode": {"kind": "generate", "max_tokens": 6}, "target": {"kind": "text"}, "batch_tokens": 400}
    recipe = recipe_of(tiny_llama, text_jsonl, trace=trace, objective={"ce_weight": 1.0})
    summary = limbeck.run_recipe(recipe, tmp_path / "run")
    assert summary["teacher"]["kl"] == 0 and summary["student"]["kl"] > 0
