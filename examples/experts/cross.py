"""Every model on every domain's held-out questions: agreement with the teacher and KL, per question.

What a router is judged by: how well would the question have been answered by each expert, by a generalist, by the
teacher? Quality here is the share of positions of the true answer at which a model's first choice is the teacher's.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from limbeck.data import read_rows
from limbeck.evaluate.compare import TEACHER, evaluate_models
from limbeck.lms import open_hf
from limbeck.recipe import Evaluate
from limbeck.rundir import atomic_write

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from limbeck.types import Progress, Row


def cross_evaluate(out: Path, domains: Sequence[str], mixed: Sequence[str]) -> list[dict[str, Any]]:
    """One entry per held-out question: its prompt, domain, positions, and of each model the mean agreement and KL.

    Models are the teacher, every domain's student and twin, and the students of `mixed` runs. Kept in OUT/cross.jsonl.
    """
    path = out / "cross.jsonl"
    if path.exists():
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = {domain: held_out(out / domain) for domain in domains}
    logging.disable_progress_bar()
    teacher = open_hf("smollm2-135m")
    roles = [(domain, role) for domain in domains for role in ("student", "twin")]
    artifacts = {f"{domain} {role}": out / domain / "train" / role for domain, role in roles}
    artifacts |= {name: out / name / "train" / "student" for name in mixed}
    dtype = str(teacher.dtype).removeprefix("torch.")
    models = {name.removesuffix(" student"): open_hf(at / "artifact", dtype=dtype) for name, at in artifacts.items()}
    entries = []
    for domain, questions in rows.items():
        found = evaluate_models(teacher, models, questions, settings=Evaluate(), on_progress=_quiet)
        for index, row in enumerate(questions):
            assert found.ids[index] == row.id
            num = float(found.positions_R[index])
            scores = {
                metric: {name: float(found.sums[name][metric][index]) / num for name in found.models}
                for metric in ("agreement", "kl", "ce")
            }
            quality = scores.pop("agreement") | {TEACHER: 1.0}
            prompt = json.loads(row.messages)[-1]["content"]
            entries.append({"prompt": prompt, "domain": domain, "positions": num, "quality": quality, **scores})
    atomic_write(path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
    return entries


def held_out(run: Path) -> list[Row]:
    return [row for row in read_rows(run / "data" / "rows.parquet") if row.split == "heldout"]


def _quiet(_progress: Progress) -> None:
    """Some seconds a domain."""
