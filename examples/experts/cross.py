"""Every model on every domain's held-out questions: agreement with the teacher and KL, per question.

What a router is judged by: how well would the question have been answered by each expert, by a generalist, by the
teacher? Quality here is the share of positions of the true answer at which a model's first choice is the teacher's.
And what a cascade goes by: how sure each expert is of its own reply to its own domain's questions.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.utils import logging

from limbeck.data import read_rows
from limbeck.engine.api import GenerateRequest
from limbeck.engine.batching import BatchEngine
from limbeck.evaluate.compare import TEACHER, evaluate_models
from limbeck.models.open import open_hf
from limbeck.recipe import Evaluate
from limbeck.system.atomic import atomic_write
from limbeck.text.chat_template import ChatTemplate
from limbeck.types import Sampling

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from limbeck.models.hf import HfLM
    from limbeck.types import Progress, Row

LONGEST = 64  # tokens of a reply that a cascade looks at


def cross_evaluate(out: Path, domains: Sequence[str], mixed: Sequence[str]) -> list[dict[str, Any]]:
    """One entry per held-out question: its prompt, domain, positions, of each model the mean agreement and KL, and how
    sure its own domain's student is of its reply.

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
        sure = asyncio.run(how_sure(models[domain], [json.loads(row.messages) for row in questions]))
        for index, row in enumerate(questions):
            assert found.ids[index] == row.id
            num = float(found.positions_R[index])
            scores = {
                metric: {name: float(found.sums[name][metric][index]) / num for name in found.models}
                for metric in ("agreement", "kl", "ce")
            }
            quality = scores.pop("agreement") | {TEACHER: 1.0}
            prompt = json.loads(row.messages)[-1]["content"]
            known = {"prompt": prompt, "domain": domain, "positions": num, "logp": sure[index]}
            entries.append({**known, "quality": quality, **scores})
    atomic_write(path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
    return entries


async def how_sure(lm: HfLM, conversations: Sequence[list[dict[str, str]]]) -> list[float]:
    """The mean log-prob (nats a token) of the model's own greedy reply to each conversation, as a server writes it."""
    template = ChatTemplate(lm.tokenizer)
    engine = BatchEngine(lm, waiting=len(conversations))

    async def one(turns: list[dict[str, str]]) -> float:
        ids = np.array(lm.tokenizer(template.prompt(turns, "prompt"))["input_ids"], dtype=np.int32)
        async with contextlib.aclosing(
            engine.write(GenerateRequest(ids, Sampling(temperature=0.0, max_tokens=LONGEST)))
        ) as written:
            return float(np.mean([token.logp async for token in written]))

    try:
        return await asyncio.gather(*(one(turns) for turns in conversations))
    finally:
        engine.close()


def held_out(run: Path) -> list[Row]:
    return [row for row in read_rows(run / "data" / "rows.parquet") if row.split == "heldout"]


def _quiet(_progress: Progress) -> None:
    """Some seconds a domain."""
