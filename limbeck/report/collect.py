"""What a report shows, read from the files of a run folder. What is missing or damaged leaves gaps, never errors."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import yaml

from limbeck.errors import RunDirError, StoreError
from limbeck.report.format import number
from limbeck.system.sealed import read_json, read_sealed, yaml_wrong

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

ROLES = ("student", "twin")
MODELS = ("teacher", *ROLES)
CURVES = ("loss", "kl", "ce")


@dataclass(frozen=True)
class Curve:
    """A model's training: `values[name][i]` was measured in step `steps[i]`; None where it was not."""

    steps: list[float]
    values: dict[str, list[float | None]]

    def points(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values where there are any."""
        pairs = [(step, value) for step, value in zip(self.steps, self.values[name], strict=True) if value is not None]
        return [step for step, _ in pairs], [value for _, value in pairs]


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run folder, as far as they could be read. `gaps` says in sentences what could not."""

    recipe_text: str
    recipe: dict[str, Any]
    summary: dict[str, Any]
    details: dict[str, Any]
    answers: list[Any]
    tasks: dict[str, Any]
    curated: dict[str, Any]
    curves: dict[str, Curve]
    made: str
    gaps: list[str] = field(default_factory=list)

    def get(self, *keys: str) -> Any:
        """A value of the summary by its path, None when it is not there."""
        return dig(self.summary, *keys)

    def detail(self, *keys: str) -> Any:
        """A value of the evaluation's details by its path, None when it is not there."""
        return dig(self.details, *keys)


def dig(data: Any, *keys: str) -> Any:
    """data[keys[0]][keys[1]]..., or None when the path breaks off."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def collect(run: Path) -> RunFiles:
    """Read a run folder. Raises RunDirError when it is none."""
    if not (run / "recipe.yaml").exists() and not (run / "summary.json").exists():
        raise RunDirError(
            f"{run} is not a run folder: it has neither recipe.yaml nor summary.json. Give the folder of a run, "
            "such as runs/NAME."
        )
    gaps: list[str] = []
    recipe_text = _text(run / "recipe.yaml", gaps)
    summary_file = run / "summary.json"
    made_at = summary_file.stat().st_mtime if summary_file.exists() else datetime.now(UTC).timestamp()
    return RunFiles(
        recipe_text=recipe_text,
        recipe=_recipe(recipe_text, gaps),
        summary=_json(summary_file, dict, gaps),
        details=_json(run / "evaluate" / "details.json", dict, gaps),
        answers=_json(run / "evaluate" / "answers.json", list, gaps),
        tasks=_json(run / "evaluate" / "tasks.json", dict, gaps),
        curated=_json(run / "curate" / "summary.json", dict, gaps),
        curves={role: curve for role in ROLES if (curve := _curve(run / "train" / role / "metrics.jsonl", gaps))},
        made=datetime.fromtimestamp(made_at, UTC).date().isoformat(),
        gaps=gaps,
    )


def _text(path: Path, gaps: list[str]) -> str:
    if not path.exists():
        gaps.append(f"{path.name} is missing.")
        return ""
    if yaml_wrong(path):
        gaps.append(f"{path.name} is damaged; what it held is not shown.")
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def _recipe(text: str, gaps: list[str]) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError:
        gaps.append("recipe.yaml is not readable YAML.")
        return {}
    return recipe if isinstance(recipe, dict) else {}


def _json(path: Path, kind: type, gaps: list[str]) -> Any:
    """The file's content if it is as it was written, else an empty one. A file that was never written is no gap."""
    if not path.exists():
        return kind()
    try:
        return read_json(path, "It is not shown.", kind)
    except StoreError as error:
        logger.info("%s", error)
        gaps.append(f"{path.name} is damaged; what it held is not shown.")
        return kind()


def _curve(path: Path, gaps: list[str]) -> Curve | None:
    """Whole lines of metrics; the last may be cut short by a kill."""
    if not path.exists():
        return None
    steps: list[float] = []
    values: dict[str, list[float | None]] = {name: [] for name in CURVES}
    broken = 0
    for _, line in read_sealed(path):
        step = number(line.get("step")) if isinstance(line, dict) else None
        if step is None:
            broken += 1
            continue
        steps.append(step)
        for name in CURVES:
            values[name].append(number(line.get(name)))
    if broken:
        gaps.append(f"{broken} of {broken + len(steps)} lines of {path.parent.name}/{path.name} could not be read.")
    return Curve(steps, values) if steps else None
