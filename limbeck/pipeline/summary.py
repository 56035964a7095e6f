"""RUN/summary.json: what came out, what it cost, and what it was expected to cost."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from limbeck.system.sealed import REMADE, read_json, read_json_or, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.recipe import Recipe
    from limbeck.system.rundir import RunDir

# What each model cost to make: the twin needs no labels, so at equal steps it is the cheaper one.
MAKING = {"student": ("label", "student", "train"), "twin": ("student", "twin")}
PACKAGES = ("limbeck", "torch", "transformers", "tokenizers", "safetensors", "pyarrow", "numpy")


def read_estimate(run: RunDir, key: str) -> dict[str, Any] | None:
    """The estimate made for this recipe, or None."""
    path = run.path / "estimate.json"
    stored = read_json_or(path, dict[str, Any]())
    return stored.get("stages") if stored.get("key") == key else None


def write_estimate(run: RunDir, key: str, stages: dict[str, Any]) -> None:
    write_json(run.path / "estimate.json", {"key": key, "stages": stages})


def write_summary(recipe: Recipe, run: RunDir, names: Sequence[str]) -> dict[str, Any]:
    """Gather the summary from what the stages of these names left, write it, and return it. The others may have left
    results of other recipes."""
    estimated = read_json_or(run.path / "estimate.json", dict[str, Any]()).get("stages", {})
    stages: dict[str, Any] = {}
    for name in names:
        record = run.record(name)
        if record is not None:
            took = {"seconds": record.seconds, "peak_bytes": record.peak_bytes, "disk_bytes": record.disk_bytes}
            stages[name] = {"estimated": estimated.get(name), "took": took}
    scores = _read(run.path / "evaluate" / "scores.json") if "evaluate" in names else {}
    for role, parts in MAKING.items():
        if role in scores:
            scores[role]["making_seconds"] = sum(stages[part]["took"]["seconds"] for part in parts if part in stages)
    summary = {
        "name": recipe.name,
        "scope": recipe.scope,
        **scores,
        **(_read(run.path / "export" / "parity.json") if "export" in names else {}),
        "stages": stages,
        "data": _read(run.path / "data" / "summary.json"),
        "environment": environment(),
    }
    write_json(run.path / "summary.json", summary)
    return summary


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, REMADE) if path.exists() else {}


def environment() -> dict[str, Any]:
    """Versions and the machine, without host names or paths."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }
