"""Problems answered, as the page shows them; what is missing or malformed leaves gaps."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.report import charts
from limbeck.report.task_table import task_table


def tasks(**changes: Any) -> dict[str, Any]:
    triple = [0.5, 0.4, 0.6]
    scores = {name: triple for name in ("pass@1", "cons@4")} | {"truncated": [0.0, 0.0, 0.0], "tokens": [12.0, 11, 13]}
    found = {
        "problems": 200,
        "n": 4,
        "metrics": list(scores),
        "models": {"teacher": scores, "student": scores, "twin": {**scores, "pass@1": [0.2, 0.1, 0.3]}},
        "difference": {"pass@1": [0.3, 0.2, 0.4]},
        "inherited": {"student": {"errors": 9, "repeated": [0.3, 0.2, 0.4], "chance": [0.1, 0.0, 0.2]}, "twin": None},
        "decoding": {"temperature": 0.6, "top_p": 0.95},
        "verifier": "numeric",
    }
    return {**found, **changes}


def test_a_row_for_every_score_and_a_cell_for_every_model() -> None:
    found = task_table(tasks())
    assert found is not None and found.models == ("teacher", "student", "twin")
    rows = {name: cells for name, _, cells in found.rows}
    assert rows["pass@1"] == ("50.0% (40.0% to 60.0%)", "50.0% (40.0% to 60.0%)", "20.0% (10.0% to 30.0%)")
    assert rows["tokens"] == ("12.0", "12.0", "12.0")
    assert rows["errors repeated"] == ("\u2013", "30.0% (chance 10.0%)", "\u2013")
    assert found.notes[0] == (
        "200 problems, 4 replies to each, temperature 0.6, top-p 0.95; verifier: numeric; 95% intervals over problems."
    )
    assert "+30.0 points (95% interval +20.0 to +40.0)" in found.notes[1]
    assert found.chart is not None and "var(--twin)" in found.chart


def test_one_greedy_reply() -> None:
    found = task_table(tasks(n=1, decoding={"temperature": 0.0, "top_p": 1.0}))
    assert found is not None and found.notes[0].startswith("200 problems, one reply to each, greedy; ")


def test_metrics_of_the_harness() -> None:
    metrics = {"acc,none": 0.25, "acc_stderr,none": 0.05, "f1,strict": 0.5, "alias": "x"}
    found = task_table({"harness": {"student": {"arc": metrics}, "teacher": {"arc": {"acc,none": 0.75}}}})
    assert found is not None and found.models == ("teacher", "student")
    assert found.harness == (("arc, acc", ("0.75", "0.25 \u00b1 0.05")), ("arc, f1,strict", ("\u2013", "0.5")))
    assert found.rows == () and found.chart is None


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"models": 3},
        {"models": {"student": {}}},
        {"metrics": "pass@1", "models": {"student": 1}},
        {"harness": {"student": {"arc": 3}}},
        {"harness": [1]},
    ],
)
def test_nothing_to_show(content: dict[str, Any]) -> None:
    assert task_table(content) is None


def test_damaged_scores_leave_gaps() -> None:
    found = task_table(tasks(models={"student": {"pass@1": [0.5, None, 1], "cons@4": "x"}}, inherited=3))
    assert found is not None
    assert {name: cells for name, _, cells in found.rows}["pass@1"] == ("\u2013",)
    assert found.chart is None
    assert charts.scores({}, "nothing") is None
