"""`limbeck show`: what a teacher said, token by token, and what a run has done so far. Read only, from files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from limbeck.data import read_rows
from limbeck.errors import DataError, RunDirError, StoreError
from limbeck.models.gguf_import import resolve_model
from limbeck.pipeline.stages import NAMES
from limbeck.recipe import Recipe, name_of
from limbeck.recipe.recipe import load_run_recipe
from limbeck.store import TraceStore
from limbeck.system.cost import disk_bytes
from limbeck.system.rundir import RunDir
from limbeck.system.sealed import REMADE, read_json, read_sealed
from limbeck.text.tokenizer import load_tokenizer, tokenizer_hash
from limbeck.types import Trace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from limbeck.system.rundir import StageRecord
    from limbeck.types import Dist, Row


@dataclass(frozen=True)
class TokenView:
    """One token. `alternatives` are the teacher's most probable next tokens before it, with their probabilities;
    `chance` is that of the token itself, None when it is not on the stored support; `rest` is the mass off the support.
    Without a stored distribution `alternatives` is empty and the other two are None."""

    position: int
    text: str
    supervised: bool
    alternatives: tuple[tuple[str, float], ...] = ()
    chance: float | None = None
    rest: float | None = None


@dataclass(frozen=True)
class TraceView:
    """One row of `total`, as the teacher read or wrote it."""

    number: int
    total: int
    id: str
    split: str
    topic: str
    source: str
    stored: bool
    tokens: tuple[TokenView, ...]


@dataclass(frozen=True)
class RunView:
    """What a run folder holds. `summary` is summary.json, {} until the run is finished; `training` the newest line of
    metrics of the student and the twin; `damaged` names the records and lines that are left out."""

    path: str
    name: str
    teacher: str
    student: dict[str, Any]
    stages: tuple[StageRecord, ...]
    bytes: dict[str, int]
    training: dict[str, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()


def show_trace(run: Path, *, row: int = 0, id: str | None = None, top: int = 5) -> TraceView:
    """Row number `row`, or the one whose id (of the trace or its row) begins with `id`, with the `top` alternatives.

    Raises RunDirError when `run` is no run folder, DataError when it has no such row, StoreError when the store is
    damaged or was made with another tokenizer.
    """
    recipe = _recipe(run)
    store = TraceStore.open(run / "traces") if (run / "traces" / "store.json").exists() else None
    items: Sequence[Row | Trace] = store.traces() if store else _rows(run)
    number = _find(items, row, id)
    item = items[number]
    path, trust = recipe.reader
    tokenizer = load_tokenizer(resolve_model(path), trust_remote_code=trust)
    if store and store.header.tokenizer_hash != tokenizer_hash(tokenizer):
        raise StoreError(
            f"{store.path} was made with another tokenizer than that of {path} "
            f"({store.header.tokenizer_hash}); its tokens cannot be named. Is the model still the same?"
        )
    keeps = store is not None and bool(store.header.head or store.header.draws)  # a store of texts keeps nothing more
    dist = store.dist(item) if store and keeps else None  # type: ignore[arg-type]
    tokens = _tokens(item, dist, tokenizer, top)
    source = item.meta.get("source", "") if isinstance(item, Trace) else item.source
    return TraceView(number, len(items), item.id, item.split, item.topic, source, store is not None, tokens)


def _recipe(run: Path) -> Recipe:
    if not (run / "recipe.yaml").exists():
        raise RunDirError(
            f"{run} is not a run folder (it has no recipe.yaml). Give the folder of a run, such as runs/NAME."
        )
    return load_run_recipe(run)


def _rows(run: Path) -> list[Row]:
    file = run / "data" / "rows.parquet"
    if not file.exists():
        raise DataError(f"{run} has no rows yet; run `limbeck label` first.")
    return read_rows(file)


def _find(items: Sequence[Row | Trace], row: int, id: str | None) -> int:
    if id is None:
        if not 0 <= row < len(items):
            raise DataError(f"there is no row {row}; the run has {len(items)} rows, numbered from 0.")
        return row
    for number, item in enumerate(items):
        if item.id.startswith(id) or (isinstance(item, Trace) and item.row_id.startswith(id)):
            return number
    raise DataError(f"no row has an id that begins with {id!r}; ids are shown by `limbeck show traces RUN --row N`.")


def _tokens(
    item: Row | Trace, dist: Dist | None, tokenizer: PreTrainedTokenizerBase, top: int
) -> tuple[TokenView, ...]:
    predicted = {index: n for n, index in enumerate(i for start, end in item.spans for i in range(start, end))}
    views = []
    for position, token in enumerate(item.ids.tolist()):
        text, n = _decode(tokenizer, token), predicted.get(position)
        if dist is None or n is None:
            views.append(TokenView(position, text, n is not None))
            continue
        ids, mass = dist.ids_NK[n].tolist(), dist.logp_NK[n].exp().tolist()
        support = sorted(((p, i) for p, i in zip(mass, ids, strict=True) if i >= 0), reverse=True)
        alternatives = tuple((_decode(tokenizer, i), p) for p, i in support[:top])
        chance = next((p for p, i in support if i == token), None)
        views.append(TokenView(position, text, True, alternatives, chance, float(dist.tail_N[n].exp())))
    return tuple(views)


def _decode(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))


def show_run(run: Path) -> RunView:
    """Raises RunDirError when `run` is no run folder, StoreError when its summary is damaged."""
    recipe = _recipe(run)
    files = RunDir(run)
    records = {stage: files.record(stage) for stage in NAMES}
    damaged = [f"stages/{name}.json" for name, one in records.items() if not one and files.record_file(name).exists()]
    folders = {path.name: disk_bytes(path) for path in sorted(run.iterdir()) if path.is_dir() and path.name != "stages"}
    training = {}
    for who in ("student", "twin"):
        lines = list(read_sealed(run / "train" / who / "metrics.jsonl"))
        damaged += [f"line {number} of train/{who}/metrics.jsonl" for number, line in lines if line is None]
        if last := next((line for _, line in reversed(lines) if isinstance(line, dict)), None):
            training[who] = last
    summary = run / "summary.json"
    return RunView(
        path=str(run),
        name=recipe.name,
        teacher=name_of(recipe.teacher),
        student=recipe.student.model_dump(exclude_none=True),
        stages=tuple(record for record in records.values() if record),
        bytes=folders,
        training=training,
        summary=read_json(summary, REMADE) if summary.exists() else {},
        damaged=tuple(damaged),
    )
