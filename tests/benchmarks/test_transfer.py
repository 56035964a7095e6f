"""Capability transfer, in small: its tokenizer, its recipes, and the whole way from problems to a table."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from limbeck.data.synthetic import make_problem
from limbeck.metrics.pass_at_k import Attempt
from limbeck.recipe import Recipe
from limbeck.recipe.rules.check import check_static
from limbeck.text.encode import Encoder, Example
from limbeck.text.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes" / "transfer").glob("*.yaml"))


@pytest.fixture(scope="module")
def transfer():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        import transfer

        yield transfer
        for name in ("transfer", "transfer_student", "transfer_chart", "frontier", "common"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def untrained(transfer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transfer") / "untrained"
    transfer.make_untrained(folder)
    return folder


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_are_sound(path: Path) -> None:
    assert not check_static(Recipe.load(path))


def test_teacher_and_students_are_asked_what_none_was_trained_on() -> None:
    by_name = {path.stem: Recipe.load(path) for path in RECIPES}
    parts = {name: recipe.data.source.part for name, recipe in by_name.items()}  # type: ignore[union-attr]
    assert parts == {"teacher": 0, "traces": 1, "answers": 1}
    asked = {recipe.evaluate.tasks.source.part for recipe in by_name.values()}  # type: ignore[union-attr]
    assert asked == {3}
    budgets = {by_name[name].train.model_dump_json() for name in ("traces", "answers")}
    assert len(budgets) == 1, "students are trained at equal tokens, in the same way"


def test_every_character_is_a_token_and_comes_back(untrained: Path) -> None:
    tokenizer = load_tokenizer(str(untrained))
    problem = make_problem("chain", 6, seed=0, index=0)
    found = Encoder(tokenizer, max_length=96, chat_template=False).encode(
        Example(prompt=problem.prompt, completion=problem.worked)
    )
    tags = problem.worked.count("think>")
    letters = len(problem.worked.replace("<think>", "").replace("</think>", ""))
    assert len(found.ids) == len(problem.prompt) + letters + tags + 1  # and an end token
    assert found.spans == ((len(problem.prompt), len(found.ids)),)
    assert tokenizer.decode(found.ids[:-1], skip_special_tokens=True) == problem.prompt + problem.worked
    assert len(tokenizer) < 32  # so that top_k with k 32 keeps whole distributions


def test_the_teacher_is_of_the_size_that_is_told(untrained: Path) -> None:
    from safetensors.numpy import load_file

    size = sum(np.prod(tensor.shape) for tensor in load_file(untrained / "model.safetensors").values())
    assert 3.4e6 < size < 3.6e6


def test_the_table_and_the_chart(transfer) -> None:
    from limbeck.metrics.pass_at_k import compare_attempts

    def model(share: float) -> list[list[Attempt]]:
        return [[Attempt("", "1", number < 20 * share, "stop", 5)] * 3 for number in range(20)]

    pooled = {"teacher": model(0.9), **dict(zip(transfer.ARMS, map(model, (0.1, 0.7, 0.9, 1.0)), strict=True))}
    found = compare_attempts(pooled, ks=(1,), teacher="teacher", resamples=50)
    found["seeds"] = {arm: [0.1, 0.2] for arm in transfer.ARMS}
    found["gaps"] = {f"{better}-{worse}": [0.1, 0.0, 0.2] for better, worse in transfer.GAPS}
    text = transfer.table(found)
    assert "| (c) verified traces | 90.0 % (" in text and "10.0 20.0" in text
    assert "(c) verified traces against (b) all traces: +10.0 points (+0.0 to +20.0)" in text
    chart = transfer.draw(found, {"teacher": "teacher", **transfer.ARMS})
    assert chart.startswith("<svg") and "verified" in chart and "var(--student)" in chart
