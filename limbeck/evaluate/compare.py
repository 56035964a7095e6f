"""Teacher and students over the same held-out rows, in lock step, a chunk of logits at a time.

Per row only sums are kept; per position nothing. `N` positions of a batch, `n` of a chunk, `R` rows, `M` bins.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import DataError, NonFiniteError, TeacherError
from limbeck.losses.chunked import iter_logits
from limbeck.metrics.calibration import Reliability, merge, reliability
from limbeck.metrics.fidelity import PositionScores, own_scores, reference, reference_of_words, score_against
from limbeck.metrics.intervals import paired_bootstrap
from limbeck.system.meter import Meter
from limbeck.text.packing import pack, plan_batches
from limbeck.types import Row, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from limbeck.models.hf import HfLM
    from limbeck.recipe import Evaluate
    from limbeck.types import Batch, OnProgress

__all__ = ["METRICS", "TEACHER", "Evaluation", "PositionBins", "evaluate_models", "paired_bootstrap"]

TEACHER = "teacher"
METRICS = ("kl", "agreement", "ce", "tv", "accuracy", "confidence", "repeated_errors")
CHUNK_BYTES = 32 * 2**20  # of one chunk's logits in float32; six such buffers exist at a time
MAX_BINS = 16


@dataclass(frozen=True)
class PositionBins:
    """Sums by place in a row: bin m holds the `edges[m]`-th to `edges[m + 1] - 1`-th supervised positions (from 1)."""

    edges: np.ndarray
    count_M: np.ndarray
    kl: dict[str, np.ndarray]
    agreement: dict[str, np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """Everything measured, as sums. `sums[model][metric]` is [R], over each row's positions; `repeated_errors` counts
    positions where the teacher is wrong and the model gives the same wrong token. `entropy_R` and `errors_R` are the
    teacher's entropy in nats and its wrong positions. `clusters` names rows that answer one prompt alike. `tops` are
    the teacher's first choices at each row's positions."""

    ids: list[str]
    clusters: list[str]
    topics: list[str]
    positions_R: np.ndarray
    entropy_R: np.ndarray
    errors_R: np.ndarray
    sums: dict[str, dict[str, np.ndarray]]
    by_position: PositionBins
    reliability: dict[str, Reliability]
    vocab: int
    notes: list[str] = field(default_factory=list)
    tops: list[np.ndarray] = field(default_factory=list)

    @property
    def models(self) -> list[str]:
        """Teacher first, where there was one."""
        return list(self.sums)

    @property
    def num_positions(self) -> int:
        return int(self.positions_R.sum())

    def mean(self, model: str, metric: str) -> float:
        return float(self.sums[model][metric].sum() / self.num_positions)


def evaluate_models(
    teacher: HfLM | None,
    students: dict[str, HfLM],
    rows: Sequence[Row | Trace],
    *,
    settings: Evaluate,
    on_progress: OnProgress,
) -> Evaluation:
    """Score `students` against `teacher` on held-out `rows`. Heads of different width are cut to the narrowest. Without
    a teacher the rows are its words: KL is cross-entropy, and agreement is how often the first choice is what follows.
    Models are in evaluation mode meanwhile (no dropout), and afterwards in the mode that they came in.

    Raises DataError when there is nothing to score, TeacherError when the models do not share one tokenizer,
    NonFiniteError naming the model whose logits are not finite.
    """
    rows = [row for row in rows if row.num_supervised]
    if not rows:
        raise DataError(
            "there are no held-out rows to evaluate on; raise data.holdout or give more data "
            "(RUN/data/summary.json says how many rows there are)."
        )
    models = students if teacher is None else {TEACHER: teacher, **students}
    tally = _Tally.start(rows, list(models), _shared_vocab(models, rows))
    lengths = [len(row.ids) for row in rows]
    meter = Meter("evaluate", "tokens", sum(lengths), on_progress)
    with _evaluating(models.values()):
        for indices in plan_batches(lengths, settings.batch_tokens):
            batch = pack([rows[index] for index in indices], device=next(iter(models.values())).device)
            _score_batch(tally, batch, _where(rows, indices, tally.by_position.edges), teacher, students)
            meter.add(len(batch.ids_T))
    notes = _vocab_notes(models, tally.vocab)
    return tally.finish(rows, notes)


@contextlib.contextmanager
def _evaluating(models: Iterable[HfLM]) -> Iterator[None]:
    """Every module in evaluation mode, and back in its own afterwards: parts of a model may differ in it."""
    modes = [(module, module.training) for lm in models for module in lm.model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True)
class _Where:
    """Of each position: the number of its row, and its bin by place among the supervised positions of that row."""

    row_N: np.ndarray
    bin_N: np.ndarray

    def __getitem__(self, part: slice) -> _Where:
        return _Where(self.row_N[part], self.bin_N[part])


def _where(rows: Sequence[Row | Trace], indices: Sequence[int], edges: np.ndarray) -> _Where:
    sizes = [rows[index].num_supervised for index in indices]
    place_N = np.concatenate([np.arange(1, size + 1) for size in sizes])
    return _Where(np.repeat(indices, sizes), np.searchsorted(edges, place_N, side="right") - 1)


def _score_batch(tally: _Tally, batch: Batch, where: _Where, teacher: HfLM | None, students: dict[str, HfLM]) -> None:
    models = list(students.values()) if teacher is None else [teacher, *students.values()]
    for part, chunk in _chunks(batch, models, tally.vocab):
        labels_n = batch.labels_N[part]
        theirs = reference_of_words(labels_n, tally.vocab) if teacher is None else reference(next(chunk))
        own = own_scores(theirs, labels_n)
        tally.add_teacher(where[part], theirs.entropy_N, own)
        tally.tops.append((where[part].row_N, theirs.top_N.cpu().numpy()))
        for name, logits_nV in zip(students, chunk, strict=True):
            tally.add(name, where[part], score_against(logits_nV, theirs, labels_n), own)


def _chunks(batch: Batch, models: list[HfLM], vocab: int) -> Iterator[tuple[slice, Iterator[Tensor]]]:
    """For each chunk of positions: its slice, and the logits of the models in turn."""
    num = min(max(CHUNK_BYTES // (4 * vocab), 16), max(batch.num_supervised, 1))
    logits = [iter_logits(lm.hidden(batch), lm.head, vocab=vocab, rows=num) for lm in models]
    for start in range(0, batch.num_supervised, num):
        part = slice(start, min(start + num, batch.num_supervised))
        yield part, (next(each)[1] for each in logits)


def _shared_vocab(models: dict[str, HfLM], rows: Sequence[Row | Trace]) -> int:
    """The number of tokens that every head has."""
    first, lead = next(iter(models.items()))
    for name, lm in models.items():
        if lm.tokenizer_hash != lead.tokenizer_hash:
            raise TeacherError(
                f"the {name} {lm.name} has another tokenizer than the {first} {lead.name} "
                f"({lm.tokenizer_hash} against {lead.tokenizer_hash}); they cannot be compared. "
                "Use models of one tokenizer."
            )
    vocab = min(lm.head.weight_VD.shape[0] for lm in models.values())
    largest = max(int(row.ids.max()) for row in rows)
    if largest >= vocab:
        raise TeacherError(
            f"the narrowest head has {vocab} tokens, but the held-out rows contain token {largest}; a model of another "
            "tokenizer is among those compared. Use models of one tokenizer."
        )
    return vocab


def _vocab_notes(models: dict[str, HfLM], vocab: int) -> list[str]:
    wider = {name: lm.head.weight_VD.shape[0] for name, lm in models.items() if lm.head.weight_VD.shape[0] != vocab}
    if not wider:
        return []
    listed = ", ".join(f"{name} {width:,}" for name, width in wider.items())
    return [f"Heads were cut to the {vocab:,} tokens that all models have (wider: {listed})."]


def position_edges(longest: int) -> np.ndarray:
    """Edges of at most MAX_BINS bins over places 1 to `longest`, whose width grows with the place."""
    return np.unique(np.ceil(np.geomspace(1, longest + 1, MAX_BINS + 1) - 1e-9).astype(np.int64))


@dataclass
class _Tally:
    """The running sums of an evaluation."""

    vocab: int
    positions_R: np.ndarray
    entropy_R: np.ndarray
    errors_R: np.ndarray
    sums: dict[str, dict[str, np.ndarray]]
    by_position: PositionBins
    reliability: dict[str, Reliability]
    tops: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)  # row and token, chunk by chunk

    @classmethod
    def start(cls, rows: Sequence[Row | Trace], models: Sequence[str], vocab: int) -> _Tally:
        positions_R = np.array([row.num_supervised for row in rows], dtype=np.float64)
        empty: Callable[[], np.ndarray] = lambda: np.zeros(len(rows))  # noqa: E731
        edges = position_edges(int(positions_R.max()))
        bins: Callable[[], dict[str, np.ndarray]] = lambda: {name: np.zeros(len(edges) - 1) for name in models}  # noqa: E731
        return cls(
            vocab=vocab,
            positions_R=positions_R,
            entropy_R=empty(),
            errors_R=empty(),
            sums={name: {metric: empty() for metric in METRICS} for name in models},
            by_position=PositionBins(edges, np.zeros(len(edges) - 1), bins(), bins()),
            reliability={name: reliability(torch.zeros(0), torch.zeros(0)) for name in models},
        )

    def add_teacher(self, where: _Where, entropy_n: Tensor, own: PositionScores) -> None:
        _into(self.entropy_R, where.row_N, entropy_n)
        _into(self.errors_R, where.row_N, ~own.correct_N)
        _into(self.by_position.count_M, where.bin_N, torch.ones_like(entropy_n))
        if TEACHER in self.sums:
            self.add(TEACHER, where, own, own)

    def add(self, model: str, where: _Where, scores: PositionScores, teacher: PositionScores) -> None:
        values = {
            "kl": scores.kl_N,
            "agreement": scores.agree_N,
            "ce": scores.ce_N,
            "tv": scores.tv_N,
            "accuracy": scores.correct_N,
            "confidence": scores.confidence_N,
            "repeated_errors": scores.agree_N & ~teacher.correct_N,
        }
        if not torch.isfinite(scores.kl_N + scores.ce_N).all():
            raise NonFiniteError(
                f"the {model}'s logits are not finite on a held-out row; the model is broken. Lower train.optimizer.lr "
                "or set train.precision to float32, and train again."
            )
        for metric, value_n in values.items():
            _into(self.sums[model][metric], where.row_N, value_n)
        _into(self.by_position.kl[model], where.bin_N, scores.kl_N)
        _into(self.by_position.agreement[model], where.bin_N, scores.agree_N)
        fresh = reliability(scores.confidence_N.cpu(), scores.correct_N.cpu())
        self.reliability[model] = merge(self.reliability[model], fresh)

    def finish(self, rows: Sequence[Row | Trace], notes: list[str]) -> Evaluation:
        return Evaluation(
            ids=[row.id for row in rows],
            clusters=[row.row_id if isinstance(row, Trace) else row.id for row in rows],
            topics=[row.topic for row in rows],
            positions_R=self.positions_R,
            entropy_R=self.entropy_R,
            errors_R=self.errors_R,
            sums=self.sums,
            by_position=self.by_position,
            reliability=self.reliability,
            vocab=self.vocab,
            notes=notes,
            tops=self._tops_by_row(),
        )

    def _tops_by_row(self) -> list[np.ndarray]:
        """A row's positions come in order, whatever the order of rows."""
        row_N, top_N = (np.concatenate(parts) for parts in zip(*self.tops, strict=True))
        order_N = np.argsort(row_N, kind="stable")
        return np.split(top_N[order_N].astype(np.int32), np.cumsum(self.positions_R.astype(np.int64))[:-1])


def _into(sums: np.ndarray, index_n: np.ndarray, values_n: Tensor) -> None:
    """Add the values to the sums that they belong to, in float64."""
    sums += np.bincount(index_n, weights=values_n.cpu().double().numpy(), minlength=len(sums))
