"""One student of benchmarks/transfer.py: it learns from some of the stored traces, and answers new problems.

python benchmarks/transfer_student.py unfiltered|verified|distributions SEED OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from limbeck.data import read_rows
from limbeck.evaluate.task_stage import judge_of, run_tasks
from limbeck.models.artifact import read_card, save_artifact
from limbeck.models.card import make_card
from limbeck.models.open import open_hf
from limbeck.recipe import Recipe
from limbeck.store import TraceStore
from limbeck.students.build import build_student
from limbeck.system.rundir import RunDir
from limbeck.train.loop import TrainContext
from limbeck.train.parallel import Ranks
from limbeck.train.run import Supervision, train_student

if TYPE_CHECKING:
    from limbeck.types import Trace

RECIPE = Path(__file__).parents[1] / "recipes" / "transfer" / "traces.yaml"


def load(out: Path, seed: int = 0) -> Recipe:
    """The recipe of the traces, with the teacher under `out`."""
    return Recipe.load(RECIPE, [f"teacher.path={out / 'teacher' / 'train' / 'student' / 'artifact'}", f"seed={seed}"])


def right_traces(recipe: Recipe, out: Path) -> tuple[list[Trace], list[Trace]]:
    """All training traces, and those whose answer is right."""
    assert recipe.evaluate.tasks is not None
    references = {row.id: row.reference for row in read_rows(out / "traces" / "data" / "rows.parquet")}
    traces = TraceStore.open(out / "traces" / "traces").traces("train")
    judge = judge_of(recipe.evaluate.tasks.verifier)
    verdicts = judge([(trace.meta["reply"], references[trace.row_id]) for trace in traces])
    return traces, [trace for trace, ok in zip(traces, verdicts, strict=True) if ok is True]


def train_arm(arm: str, seed: int, out: Path) -> None:
    """Leaves OUT/ARM-SEED like the folder of a run: student, train, evaluate. Goes on where it was stopped."""
    recipe, folder = load(out, seed), out / f"{arm}-{seed}"
    if (folder / "evaluate" / "tasks.json").exists():
        return
    teacher = open_hf(recipe.reader[0], dtype="float32")
    everything, right = right_traces(recipe, out)
    with RunDir.open(folder) as run:
        start = build_student(recipe, run, teacher, [])
        where = folder / "train" / "student"
        job = TrainContext("train", where, seed, Ranks("none", 0, 1), lambda _: None, print, lambda: False)
        by = Supervision("text", teacher.columns)
        if arm == "distributions":
            by = Supervision("stored", teacher.columns, store=TraceStore.open(out / "traces" / "traces"))
        trained = train_student(recipe, everything if arm == "unfiltered" else right, start, by, job)
        card = make_card(recipe, lineage=[*read_card(start).lineage, f"trained on traces: {arm}"])
        save_artifact(where / "artifact", trained.model, teacher.tokenizer, card, dtype=torch.float32)
        student = open_hf(where / "artifact", dtype="float32")
        run_tasks(
            recipe,
            [folder / "evaluate"],
            {"student": student},
            [],
            on_progress=lambda _: None,
            stop_asked=lambda: False,
        )


if __name__ == "__main__":
    train_arm(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
