"""What the statements of `limbeck selftest` work with: the two models, a few short rows, and what is made of them by
the code that trains. `oracles` has what it is compared with."""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from limbeck.data import read_examples, row_id
from limbeck.errors import DataError, EmptyRow, LongRow, UnsupervisedRow
from limbeck.label import local
from limbeck.losses import chunked, divergences
from limbeck.losses.terms import Terms
from limbeck.models import hf
from limbeck.recipe import FileSource, Recipe
from limbeck.selftest.oracles import Side, StepResult, alone, logits_alone, plain_loss, snapshot
from limbeck.text.encode import Encoder, Example
from limbeck.text.packing import pack
from limbeck.train import sources
from limbeck.train.distiller import Distiller
from limbeck.types import Callbacks, LiveTarget, Row, Vocab

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from limbeck.models.hf import HfLM
    from limbeck.store import TraceStore
    from limbeck.types import Batch, LossOut

    pass


class CannotRun(Exception):
    """A statement has nothing to measure on this pair; the message says why."""


class Measure(NamedTuple):
    """What was measured, its value, and the range that it has to be in. NaN is outside."""

    what: str
    value: float
    high: float = math.inf
    low: float = -math.inf

    @property
    def passed(self) -> bool:
        return self.low <= self.value <= self.high


def worst(what: str, errors: dict[str, float], high: float) -> Measure:
    """The largest of several errors, by name; one that is not a number counts as the largest."""
    name = max(errors, key=lambda key: math.inf if math.isnan(errors[key]) else errors[key])
    return Measure(f"{what} ({name})" if len(errors) > 1 else what, errors[name], high)


PASSAGES = (
    ("The river ", "rose all night, and by morning the old bridge was gone."),
    ("def area(r):", "\n    return 3.14159 * r * r\n"),
    ("In 1969, ", "two men walked on the Moon for 2 h 31 min; 600 million watched."),
    ("Ein Café in ", "Zürich: 4,50 €, geöffnet bis 23 Uhr, für 東京 🙂"),
    ("2 + 2 =", " 4."),
)
"""Prompt and completion: the prompt is not supervised. Unlike in length, script and share of digits."""

SHORT, LONG = 32, 128  # most tokens of a built-in row, and of a row of the user's
NUM_ROWS = 6
PROMPT, REPLY = 8, 12  # tokens that the teacher is given, and writes
NUM_FEW = 8  # positions on which losses are compared in double precision


# ---- rows ------------------------------------------------------------------------------------------------------------


def short_rows(tokenizer: PreTrainedTokenizerBase, file: Path | None, context: int | None) -> list[Row]:
    """A few rows with unsupervised beginnings and ends. Raises DataError when a file has fewer than two usable rows."""
    if file is None:
        examples: Iterable[Example] = [Example(prompt=a, completion=b, source="built in") for a, b in PASSAGES]
    else:
        examples = read_examples(FileSource(path=str(file)), bad_rows="skip", on_bad=lambda _: None)
    length = min(SHORT if file is None else LONG, context or LONG)
    encoder = Encoder(
        tokenizer, max_length=length, chat_template=file is not None and tokenizer.chat_template is not None
    )
    rows: dict[str, Row] = {}
    for example in examples:
        with contextlib.suppress(EmptyRow, LongRow, UnsupervisedRow):
            row = encoder.encode(example)
            id = row_id(row.text)
            rows[id] = _masked(Row(id, "train", "", row.text, row.ids, row.spans, example.source), len(rows))
        if len(rows) == NUM_ROWS:
            break
    if len(rows) < 2:
        raise DataError(f"{file} has {len(rows)} usable rows; selftest needs two different ones at least.")
    return list(rows.values())


def _masked(row: Row, number: int) -> Row:
    """Every second row loses its last two tokens' supervision and, where all of it is supervised, its first two's."""
    start, end = row.spans[-1]
    if number % 2 == 0 or end - start < 6:
        return row
    return replace(row, spans=(*row.spans[:-1], (start + 2 if start == 1 else start, end - 2)))


# ---- the pair --------------------------------------------------------------------------------------------------------


@dataclass
class Pair:
    """Teacher, student (float32) and rows. `vocab` is what they share; `names` are the divergences under test; `folder`
    is for stores and is thrown away. `apart` says why ids do not mean the same to both; None when they do."""

    teacher: HfLM
    student: HfLM
    rows: list[Row]
    names: tuple[str, ...]
    folder: Path
    apart: str | None = None
    stores: Iterator[int] = field(default_factory=itertools.count)

    @property
    def vocab(self) -> int:
        return self.teacher.vocab

    @property
    def columns(self) -> Vocab:
        return self.teacher.columns

    @property
    def exact(self) -> bool:
        """Whether the teacher runs in float32: else its packed and single passes differ by rounding."""
        return self.teacher.dtype == torch.float32

    @cached_property
    def terms(self) -> Terms:
        """The objective of whole steps: the divergence asked for at T = 2 and a little cross-entropy."""
        name = self.names[0]
        return Terms(name, 2.0 if divergences.DIVERGENCES[name].tempered else 1.0, 0.3)

    @cached_property
    def stored_terms(self) -> Terms:
        """The same where a top-k target has what it needs; forward KL otherwise."""
        needs = divergences.DIVERGENCES[self.names[0]].needs
        return replace(self.terms, divergence="forward_kl", params={}) if needs == "full" else self.terms

    @cached_property
    def distiller(self) -> Distiller:
        """As in training, but for dropout: a comparison needs the same function twice."""
        made = Distiller(self.student.model.requires_grad_(True), self.terms, vocab=self.columns)
        made.student.eval()
        return made

    # ---- a few positions, for losses in double precision ----

    @cached_property
    def live_batch(self) -> Batch:
        return sources.live(self.teacher, self.columns)(self.rows)

    @cached_property
    def few(self) -> Tensor:
        num = self.live_batch.num_supervised
        return torch.linspace(0, num - 1, min(NUM_FEW, num)).long().to(self.teacher.device)

    @cached_property
    def side(self) -> Side:
        """The student's hidden rows at `few`, and its head."""
        head = chunked.cut_head(hf.head_of(self.student.model), self.vocab)
        return Side(self.student.hidden(pack(self.rows, device=self.student.device))[self.few], head)

    @cached_property
    def other(self) -> Side:
        """The teacher's, in float32: what bfloat16 does to products is a statement of its own."""
        target = self.live_batch.target
        assert isinstance(target, LiveTarget)
        head = replace(target.head, weight_VD=target.head.weight_VD.float())
        return Side(target.hidden_ND[self.few].float(), head)

    @property
    def live(self) -> LiveTarget:
        return LiveTarget.of(self.other.hidden_ND, self.other.head)

    @cached_property
    def labels(self) -> Tensor:
        return self.live_batch.labels_N[self.few]

    # ---- the ruler: each document alone, by the model's own code ----

    @cached_property
    def teacher_alone(self) -> Tensor:
        """The teacher's logits of every supervised position: [N, V], float32."""
        return alone(self.teacher, self.rows, self.vocab)

    @cached_property
    def student_alone(self) -> Tensor:
        return alone(self.student, self.rows, self.vocab)

    @cached_property
    def plain_step(self) -> StepResult:
        """Loss and gradient of `terms`, one document at a time through the models' own forward."""
        student = self.distiller.student
        student.zero_grad(set_to_none=True)
        labels_N, done, loss = self.live_batch.labels_N, 0, 0.0
        for z_nV in logits_alone(student, self.rows, self.vocab):
            part = slice(done, done + len(z_nV))
            u_nV = self.teacher_alone[part].to(z_nV.device)
            value = plain_loss(z_nV.double(), u_nV.double(), self.terms, labels_N[part]).sum()
            value.backward()
            loss, done = loss + float(value.detach()), part.stop
        return StepResult(loss, snapshot(student))

    @cached_property
    def packed_step(self) -> StepResult:
        return self.step(self.live_batch, self.terms)

    def step(self, batch: Batch, terms: Terms) -> StepResult:
        """Loss and gradient of one packed batch through the module that is trained."""
        out = self.forward(batch, terms)
        out.loss.backward()
        return StepResult(float(out.loss.detach()), snapshot(self.distiller.student))

    def forward(self, batch: Batch, terms: Terms) -> LossOut:
        self.distiller.student.zero_grad(set_to_none=True)
        self.distiller.terms = terms
        return self.distiller(batch)

    # ---- stores ----

    def label(
        self, rows: Sequence[Row] | None = None, *, seed: int = 0, temperature: float = 1.0, **trace
    ) -> TraceStore:
        """The teacher on `rows` as the label stage stores it. `trace` is the recipe's section."""
        facts = {"name": "selftest", "seed": seed, "teacher": {"path": self.teacher.name}, "trace": trace}
        facts |= {"data": {"source": {"kind": "stdlib"}}, "student": {"kind": "prune", "layers": 1}}
        facts |= {"objective": {"temperature": temperature}, "train": {"budget": {"kind": "steps", "steps": 1}}}
        recipe = Recipe.model_validate(facts)
        path = self.folder / f"store-{next(self.stores)}"
        quiet = Callbacks(lambda _: None, lambda _: None, lambda: False)
        return local.run_label(recipe, path, self.teacher, rows or self.rows, quiet)

    @cached_property
    def top_k(self) -> TraceStore:
        return self.label(target={"kind": "top_k", "k": min(8, self.vocab - 1)})

    @cached_property
    def replies(self) -> TraceStore:
        """What the teacher writes after the beginnings of the rows, sampled colder than it is."""
        prompts = [replace(row, id=f"{row.id}-prompt", ids=row.ids[:PROMPT], spans=()) for row in self.rows]
        mode = {"kind": "generate", "temperature": 0.7, "top_p": 0.9, "max_tokens": REPLY}
        return self.label(prompts, mode=mode, target={"kind": "top_k", "k": min(8, self.vocab - 1)})
