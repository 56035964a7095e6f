"""Problems answered, for the page: a table of scores with intervals, bars, and the teacher's errors that came back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbeck.report import charts
from limbeck.report.collect import MODELS, dig
from limbeck.report.format import MISSING, number, percent, signed
from limbeck.text.visible import shortened

if TYPE_CHECKING:
    from markupsafe import Markup

SHARES = {"truncated": "cut off", "no_answer": "no answer", "unjudged": "not judged"}


@dataclass(frozen=True)
class TaskTable:
    """`rows` are (name, meaning, one cell per model); `notes` are sentences."""

    models: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[str, ...]], ...]
    chart: Markup | None
    notes: tuple[str, ...]
    harness: tuple[tuple[str, tuple[str, ...]], ...]


def task_table(tasks: dict[str, Any]) -> TaskTable | None:
    """What tasks.json holds, as far as it is as it should be; None when there is nothing to show."""
    models = tuple(name for name in MODELS if dig(tasks, "models", name) or dig(tasks, "harness", name))
    listed = tasks.get("metrics")
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    rows = [(name, _meaning(name), tuple(_cell(tasks, model, name) for model in models)) for name in names]
    rows += _inherited(tasks, models)
    harness = _harness(tasks, models)
    if not models or not (rows or harness):
        return None
    scores = [name for name in names if name.startswith(("pass@", "cons@"))]
    values = {name: {m: t for m in models if (t := charts.triple(dig(tasks, "models", m, name)))} for name in scores}
    return TaskTable(models, tuple(rows), charts.scores(values, "Problems answered rightly"), _notes(tasks), harness)


def _meaning(name: str) -> str:
    kind, _, k = name.partition("@")
    if kind == "pass":
        return "mean over all replies" if k == "1" else f"at least one of {k} replies is right"
    if kind == "cons":
        return f"the most frequent of {k} answers is right"
    return {
        "truncated": "of replies: cut off at the longest allowed length",
        "no_answer": "of replies: no final answer",
        "unjudged": "of replies: the verifier could not say; counted as wrong",
        "tokens": "mean length of a reply",
    }.get(name, "")


def _cell(tasks: dict[str, Any], model: str, name: str) -> str:
    found = charts.triple(dig(tasks, "models", model, name))
    if not found:
        return MISSING
    mean, low, high = found
    if name == "tokens":
        return f"{mean:,.1f}"
    return percent(mean) if name in SHARES else f"{percent(mean)} ({percent(low)} to {percent(high)})"


def _inherited(tasks: dict[str, Any], models: tuple[str, ...]) -> list[tuple[str, str, tuple[str, ...]]]:
    """The share of the teacher's errors that a model repeats, and what chance would repeat."""
    cells = []
    for model in models:
        share, chance = (charts.triple(dig(tasks, "inherited", model, key)) for key in ("repeated", "chance"))
        cells.append(f"{percent(share[0])} (chance {percent(chance[0])})" if share and chance else MISSING)
    if all(cell == MISSING for cell in cells):
        return []
    return [("errors repeated", "of the teacher's wrong answers, given again word for word", tuple(cells))]


def _notes(tasks: dict[str, Any]) -> tuple[str, ...]:
    problems, n = number(tasks.get("problems")), number(tasks.get("n"))
    heat, top_p = (number(dig(tasks, "decoding", key)) for key in ("temperature", "top_p"))
    out = []
    if problems and n:
        how = "greedy" if not heat else f"temperature {heat:g}, top-p {top_p or 1.0:g}"
        judged = shortened(str(tasks.get("verifier") or "unknown"), 40)
        replies = "one reply" if n == 1 else f"{n:,.0f} replies"
        out.append(
            f"{problems:,.0f} problems, {replies} to each, {how}; verifier: {judged}; 95% intervals over problems."
        )
    gap = charts.triple(dig(tasks, "difference", "pass@1"))
    if gap:
        mean, low, high = (signed(100 * value, 1) for value in gap)
        out.append(f"pass@1, student \u2212 twin on the same problems: {mean} points (95% interval {low} to {high}).")
    return tuple(out)


def _harness(tasks: dict[str, Any], models: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Metrics of lm-evaluation-harness with its standard errors: one line per task and metric."""
    listed: list[tuple[str, str]] = []
    for model in models:
        found = dig(tasks, "harness", model)
        for task, metrics in found.items() if isinstance(found, dict) else ():
            for name in metrics if isinstance(metrics, dict) else ():
                measured = "_stderr" not in name and _value(tasks, model, task, name) is not None
                if measured and (task, name) not in listed:
                    listed.append((task, name))
    rows = []
    for task, name in listed:
        title = shortened(f"{task}, {re.sub(',none$', '', name)}", 80)
        cells = tuple(_harness_cell(tasks, model, task, name) for model in models)
        rows.append((title, cells))
    return tuple(rows)


def _value(tasks: dict[str, Any], model: str, task: str, name: str) -> float | None:
    return number(dig(tasks, "harness", model, task, name))


def _harness_cell(tasks: dict[str, Any], model: str, task: str, name: str) -> str:
    value = _value(tasks, model, task, name)
    if value is None:
        return MISSING
    metric, _, filter_name = name.partition(",")
    error = _value(tasks, model, task, f"{metric}_stderr,{filter_name}")
    return f"{value:.4g}" if error is None else f"{value:.4g} \u00b1 {error:.2g}"
