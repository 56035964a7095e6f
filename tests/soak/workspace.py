"""A place to break things in: a tiny model, data, a recipe, and the files that an undisturbed run of it leaves.

workspace.before("train")   the run folder as it is when the stage `train` is about to begin
workspace.limbeck()         `limbeck run` on it, with faults where they are given
workspace.differs()         what is not as in the undisturbed run; None where all is
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from limbeck.recipe import Recipe
from limbeck.recipe.recipe import dump_recipe
from tests.pipeline.kinds import folder_of_files
from tests.soak.child import PATIENCE, Child, Ended, start
from tests.soak.inject import Fault

BYTES = (
    "data/rows.parquet",
    "traces/*.targets",
    "traces/*.parquet",
    "curate/kept.json",
    "student/model.safetensors",
    "train/*/artifact/model.safetensors",
    "evaluate/*.parquet",
    "export/*/model.*",
)
"""Files that are equal byte for byte but for the name of the run folder, however often a run was interrupted."""
VALUES = ("train/*/metrics.jsonl", "evaluate/*.json", "evaluate/tasks/*.jsonl", "curate/summary.json")
"""Files that are equal but for what was measured with a clock or a memory gauge."""
SEALS = ("MANIFEST.json",)  # of what was measured as well
MEASURED = (
    "seconds",
    "tokens_per_second",
    "writing_tokens_per_second",
    "memory_bytes",
    "peak_bytes",
    "rounds",
    "speed",
    "making_seconds",
    "crc",  # of all of these
    "model",  # by its path, in the heads of replies
)

FILES = {"kind": "files", "path": "text.jsonl", "text": "text", "topic": "topic"}
PROMPTS = {"kind": "files", "path": "prompts.jsonl", "prompt": "prompt", "reference": "reference"}
SHARED: dict[str, Any] = {
    "teacher": {"path": "teacher"},
    "student": {"kind": "prune", "layers": 2},
    "train": {
        "budget": {"kind": "steps", "steps": 6},
        "batch_tokens": 200,
        "precision": "float32",
        "checkpoint_minutes": 1e-4,
    },
}
RECIPES: dict[str, dict[str, Any]] = {
    # Stored targets, a twin, tasks.
    "scored": {
        "data": {"source": FILES, "max_length": 48, "holdout": 0.25},
        "trace": {"target": {"kind": "top_k", "k": 8}, "batch_tokens": 150, "shard_tokens": 300},
        "train": {**SHARED["train"], "twin": True},
        "evaluate": {
            "answers": 1,
            "answer_tokens": 4,
            "bootstrap": 50,
            "tasks": {"verifier": {"kind": "regex"}, "max_tokens": 8, "source": PROMPTS},
        },
    },
    # The teacher writes; what it wrote is curated; two exports.
    "written": {
        "data": {"source": PROMPTS, "max_length": 48, "holdout": 0.25},
        "trace": {
            "mode": {"kind": "generate", "n": 2, "max_tokens": 6},
            "target": {"kind": "text"},
            "batch_tokens": 150,
            "shard_tokens": 300,
        },
        "curate": [{"kind": "finish", "allowed": ["stop", "length"]}, {"kind": "exact_duplicates"}],
        "objective": {"ce_weight": 1.0},
        "evaluate": {"answers": 1, "answer_tokens": 4, "bootstrap": 50},
        "export": [{"kind": "gguf", "quant": "q8_0"}, {"kind": "safetensors", "quant": "bfloat16"}],
    },
}

STAGES: dict[str, tuple[str, ...]] = {
    "data": ("data",),
    "label": ("traces",),
    "curate": ("curate",),
    "student": ("student",),
    "train": ("train/student",),
    "twin": ("train/twin",),
    "evaluate": ("evaluate",),
    "export": ("export",),
    "report": ("report.html", "summary.json"),
}
"""Stages in order, and what each leaves."""


@dataclass(frozen=True)
class Base:
    """What all rounds with one recipe share: the folder of its files, and an undisturbed run."""

    name: str
    folder: Path

    @classmethod
    def make(cls, name: str, folder: Path, teacher: Path) -> Base:
        """Fill `folder` and run the recipe once."""
        folder.mkdir(parents=True)
        folder_of_files(folder, teacher)
        base = cls(name, folder)
        tree = {"name": name, **SHARED, **RECIPES[name]}
        tree = _absolute(tree, folder)
        base.recipe_file.write_text(dump_recipe(Recipe.model_validate(tree)))
        ended = start(base.words(base.straight), folder / "straight.log").wait()
        assert ended.code == 0, ended.said
        return base

    @property
    def recipe_file(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def straight(self) -> Path:
        return self.folder / "straight"

    def words(self, run: Path, *overrides: str) -> list[str]:
        return ["run", str(self.recipe_file), *overrides, "--run-dir", str(run)]

    @cached_property
    def stages(self) -> list[str]:
        """Those that this recipe has, in order."""
        return [stage for stage in STAGES if (self.straight / "stages" / f"{stage}.json").exists()]

    @cached_property
    def seconds(self) -> dict[str, float]:
        """How long each stage took undisturbed."""
        return {
            stage: json.loads((self.straight / "stages" / f"{stage}.json").read_text())["seconds"]
            for stage in self.stages
        }

    @cached_property
    def outputs(self) -> dict[str, str]:
        return outputs_of(self.straight, self.straight)


@dataclass(frozen=True)
class Workspace:
    """One round: an empty folder of its own beside what all rounds share."""

    base: Base
    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def finished(self) -> Path:
        """The run folder as an undisturbed run leaves it."""
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(self.base.straight, self.run)
        return self.run

    def before(self, stage: str) -> Path:
        """The run folder as it is when `stage` is about to begin."""
        self.finished()
        names = list(STAGES)
        for gone in names[names.index(stage) :]:
            (self.run / "stages" / f"{gone}.json").unlink(missing_ok=True)
            for output in STAGES[gone]:
                path = self.run / output
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return self.run

    def somewhere(self, rng: Random) -> str:
        """A stage by chance: the run folder is as before it."""
        stage = rng.choice(self.base.stages)
        self.before(stage)
        return stage

    def start(self, *overrides: str, faults: Sequence[Fault] = ()) -> Child:
        """`limbeck run` of the recipe, in a process of its own."""
        return start(self.base.words(self.run, *overrides), self.log, faults)

    def limbeck(self, *overrides: str, faults: Sequence[Fault] = (), patience: float = PATIENCE) -> Ended:
        return self.start(*overrides, faults=faults).wait(patience)

    def differs(self) -> str | None:
        """What is not as an undisturbed run leaves it: a file, or one that should not be there."""
        found, wanted = outputs_of(self.run, self.base.straight), self.base.outputs
        for name in sorted(found.keys() | wanted.keys()):
            if found.get(name) != wanted.get(name):
                return f"{name} is {'another one' if name in found and name in wanted else 'missing or too much'}"
        left = leftovers(self.run)
        return f"{left[0]} was left behind" if left else None

    def again(self) -> str | None:
        """The same command once more, undisturbed: what is wrong afterwards, or None."""
        ended = self.limbeck()
        if ended.code != 0 or ended.wrong:
            return ended.wrong or f"the command again ended with exit code {ended.code}. {ended.tail}"
        return self.differs()


def outputs_of(run: Path, straight: Path) -> dict[str, str]:
    """Name -> digest of all that must not depend on interruptions, nor on being a copy of the undisturbed run."""
    return {name: digest for name, digest in _digests(run, straight)}


def leftovers(run: Path) -> list[str]:
    """Files and folders under a name that only an unfinished write has."""
    return sorted(
        path.relative_to(run).as_posix() for path in run.rglob(".*") if path.suffix in (".tmp", ".old", ".part")
    )


def _digests(run: Path, straight: Path) -> Iterator[tuple[str, str]]:
    for pattern in BYTES:
        for file in run.glob(pattern):
            data = file.read_bytes().replace(str(run).encode(), b"RUN").replace(str(straight).encode(), b"RUN")
            yield file.relative_to(run).as_posix(), hashlib.sha256(data).hexdigest()
    for pattern in VALUES:
        for file in run.glob(pattern):
            if file.name in SEALS:
                continue
            lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
            values = [_unmeasured(json.loads(line)) for line in lines]
            yield file.relative_to(run).as_posix(), hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _unmeasured(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unmeasured(item) for key, item in value.items() if key not in MEASURED}
    return [_unmeasured(item) for item in value] if isinstance(value, list) else value


def _absolute(tree: Any, folder: Path) -> Any:
    """Names of what is in `folder` are written out: commands run elsewhere."""
    if isinstance(tree, dict):
        return {key: _absolute(value, folder) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_absolute(value, folder) for value in tree]
    return str(folder / tree) if isinstance(tree, str) and (folder / tree).exists() else tree
