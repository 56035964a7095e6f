"""A run folder that several recipes visit in turn, each up to some stage, some of them cut off in the middle."""

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from limbeck.pipeline.run import run_recipe
from limbeck.recipe import Recipe
from limbeck.store.writer import StoreWriter
from limbeck.system.atomic import LEFT_BEHIND, sha256_file
from limbeck.train import loop

DISK = ("rename", "replace", "unlink", "rmdir", "mkdir", "write", "fsync", "link")
"""Whatever changes a folder, or makes a change durable."""


class PowerCut(BaseException):
    """Nothing that the process does after it reaches the disk: no cleaning up either."""


@contextmanager
def cut_at(number: int) -> Iterator[list[int]]:
    """End the work at the `number`-th change of the disk. The list holds how many there were."""
    seen = [0]

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen[0] += 1
            if seen[0] >= number:
                raise PowerCut
            return real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in DISK:
            patch.setattr(os, name, watched(getattr(os, name)))
        yield seen


@dataclass
class Visits:
    """A run folder, and what was done in it: which shards were made, which trainings were finished."""

    path: Path
    recipes: dict[str, Recipe]
    made: set[tuple[str, tuple[str, ...]]] = field(default_factory=set)
    trained: set[str] = field(default_factory=set)
    messages: list[str] = field(default_factory=list)

    def visit(self, name: str, until: str, cut: int = 10**9) -> bool:
        """Run a recipe, at most to its `cut`-th change of the disk. Returns whether it came to its end. Fails when a
        shard is made a second time, or a step is taken of a training that was finished before."""
        commit, step = StoreWriter.commit, loop.train_step

        def commit_once(writer: StoreWriter, shard: int, traces: Any, records: Any) -> None:
            key = writer.header.fingerprint, tuple(writer.plan[shard])
            assert key not in self.made, f"shard {shard} was there, and is made again"
            commit(writer, shard, traces, records)
            self.made.add(key)

        def step_once(*args: Any, **kwargs: Any) -> Any:
            assert name not in self.trained, f"{name} was trained before"
            return step(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch, cut_at(cut):
            patch.setattr(StoreWriter, "commit", commit_once)
            patch.setattr(loop, "train_step", step_once)
            try:
                run_recipe(self.recipes[name], self.path, until=until, estimate=False, on_message=self.messages.append)
            except PowerCut:
                return False
        if until not in ("data", "label", "student"):
            self.trained.add(name)
        return True

    def left_behind(self) -> list[str]:
        return [str(path) for path in self.path.rglob(".*") if LEFT_BEHIND.fullmatch(path.name)]


def state_of(run: Path) -> dict[str, Any]:
    """What may not depend on what the folder saw before: the store, both models, and every score."""
    manifest = [json.loads(line) for line in (run / "traces" / "manifest.jsonl").read_text().splitlines()]
    kept = sorted(file for entry in manifest for file in entry["files"])
    weights = ("student", "train/student/artifact")
    files = [*(run / "traces" / name for name in kept), *(run / where / "model.safetensors" for where in weights)]
    found: dict[str, Any] = {str(file.relative_to(run)): sha256_file(file) for file in files}
    for file in sorted((run / "evaluate").rglob("*")):
        if file.suffix == ".json" and file.name != "MANIFEST.json":
            found[file.name] = _without_speed(json.loads(file.read_text()))
        elif file.is_file() and file.name != "MANIFEST.json":
            found[file.name] = sha256_file(file)
    card = json.loads((run / "train/student/artifact/limbeck.json").read_text())
    return found | {"scores in the card": _without_speed(card["scores"])}


def _without_speed(value: Any) -> Any:
    if isinstance(value, dict):
        timed = ("speed", "seconds", "per_second")
        return {key: _without_speed(each) for key, each in value.items() if not any(word in key for word in timed)}
    return [_without_speed(each) for each in value] if isinstance(value, list) else value


def random_visits(seed: int, names: list[str], most_changes: int) -> list[tuple[str, str, int]]:
    """Who comes, up to which stage, and at which change of the disk it is cut off (far out: not at all)."""
    rng = random.Random(seed)
    stages = ["label", "train", "train", "evaluate"]
    return [
        (rng.choice(names), rng.choice(stages), rng.choice([10**9, rng.randint(1, most_changes)]))
        for _ in range(rng.randint(2, 6) if seed else 2)
    ]
