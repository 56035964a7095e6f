"""The curate stage: which of the teacher's replies are learnt from.

    RUN/curate/kept.json         ids of what is kept
    RUN/curate/rejected.parquet  what was left out, by which rule, and why
    RUN/curate/pass_rates.json   share of right replies by row, where a rule verified
    RUN/curate/summary.json      counts by rule
    RUN/curate/verdicts.jsonl    verdicts so far: a job that was killed verifies nothing twice

Held-out replies are never left out: a test set without the teacher's mistakes would flatter whoever shares them.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.curate.chain import Curated, RuleOutcome, curate
from limbeck.curate.context import Candidate, Context
from limbeck.curate.verifiers import Verdict, verify_all
from limbeck.errors import DataError, RunDirError, Stopped
from limbeck.recipe import DecontaminateRule, Judge, VerdictRule
from limbeck.system.atomic import atomic_path, atomic_write, fingerprint, sha256_file
from limbeck.system.jsonl import append_durably, read_values
from limbeck.system.meter import Meter
from limbeck.text.finish import finish_reason
from limbeck.types import Row, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedTokenizerBase

    from limbeck.curate.verifiers import Ask
    from limbeck.recipe import Recipe, Verifier
    from limbeck.types import OnProgress

CHUNK = 256
"""Replies verified between two writes of their verdicts; with a judge that is paid, as many as it is asked at once."""


def candidates_of(
    items: Sequence[Row | Trace], rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase
) -> list[Candidate]:
    """The replies of traces, or of rows that have theirs, as rules see them."""
    by_id = {row.id: row for row in rows}
    return [_candidate(item, by_id[item.row_id if isinstance(item, Trace) else item.id], tokenizer) for item in items]


def _candidate(item: Row | Trace, row: Row, tokenizer: PreTrainedTokenizerBase) -> Candidate:
    turns = json.loads(row.messages) if row.messages else []
    meta = item.meta if isinstance(item, Trace) else {}
    reply = meta.get("reply")
    if reply is None:
        spoken = [token for start, end in item.spans for token in item.ids[start:end].tolist()]
        reply = str(tokenizer.decode(spoken, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return Candidate(
        id=item.id,
        row_id=row.id,
        split=item.split,
        topic=item.topic,
        prompt=turns[-1].get("content") or "" if turns else ("" if reply == row.text else row.text),
        reply=reply,
        reference=row.reference,
        finish_reason=finish_reason(meta.get("finish_reason", "stop")),
        num_tokens=item.num_supervised,
        meta=meta,
    )


def run_curate(
    recipe: Recipe,
    folder: Path,
    candidates: Sequence[Candidate],
    *,
    ask: Ask | None,
    on_progress: OnProgress,
    stop_asked: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Apply the recipe's rules to the training replies among `candidates` and write RUN/curate. Returns its summary.

    Raises DataError when nothing is left, naming the rule that took most; and what the rules raise.
    """
    train = [one for one in candidates if one.split == "train"]
    held_out = [one for one in candidates if one.split != "train"]
    cache = _Verdicts(folder / "verdicts.jsonl", ask, on_progress, stop_asked)
    context = Context(cache.verify, held_out, recipe.seed)

    def on_step(step: RuleOutcome) -> None:
        if stop_asked() and step.number < len(recipe.curate):
            raise Stopped("stopped while curating; verdicts are kept. Run the same command again to go on.")

    found = curate(train, recipe.curate, context, on_step=on_step)
    summary = {
        "candidates": len(train),
        "kept": len(found.kept),
        "prompts": len({one.row_id for one in found.kept}),
        "steps": [asdict(step) for step in found.steps],
        "pass_rate": sum(context.pass_rate.values()) / len(context.pass_rate) if context.pass_rate else None,
        "notes": context.notes,
    }
    _write_rejected(folder / "rejected.parquet", found, context)
    atomic_write(folder / "pass_rates.json", json.dumps(context.pass_rate, indent=0))
    atomic_write(folder / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False))
    if not found.kept:
        worst = max(found.steps, key=lambda step: step.came - step.kept)
        why = next(iter(worst.reasons), "")
        raise DataError(
            f"no training reply is left: rule {worst.number} ({worst.rule}) left out {worst.came - worst.kept} of "
            f"{len(train)} ({why}). Loosen it; {folder / 'rejected.parquet'} has them all."
        )
    atomic_write(folder / "kept.json", json.dumps([one.id for one in found.kept]))
    return summary


def rule_files(recipe: Recipe) -> list[str]:
    """Content hash of every file that a rule reads, "" where it is missing: what a human said, and test sets."""
    files = [rule.path for rule in recipe.curate if isinstance(rule, VerdictRule)]
    files += [path for rule in recipe.curate if isinstance(rule, DecontaminateRule) for path in rule.paths]
    return [sha256_file(Path(file)) if Path(file).is_file() else "" for file in files]


def kept_ids(folder: Path) -> set[str]:
    """What the stage kept. Raises RunDirError before it has run."""
    file = folder / "kept.json"
    if not file.exists():
        raise RunDirError(f"{file} is missing; run the stage curate first: limbeck run RECIPE.")
    return set(json.loads(file.read_text()))


class _Verdicts:
    """Verdicts, remembered on disk."""

    def __init__(self, path: Path, ask: Ask | None, on_progress: OnProgress, stop_asked: Callable[[], bool]) -> None:
        self.path, self.ask, self.on_progress, self.stop_asked = path, ask, on_progress, stop_asked
        self.known: dict[str, Verdict] = {}
        for key, ok, reason in read_values(path):
            self.known[key] = Verdict(ok, reason)

    def verify(self, verifier: Verifier, pairs: list[tuple[str, str]]) -> list[Verdict]:
        identity, chunk = verifier.stored_form(), CHUNK
        if isinstance(verifier, Judge) and verifier.endpoint:  # how fast it is asked changes no verdict
            identity["endpoint"], chunk = verifier.endpoint.identity, verifier.endpoint.concurrency
        keys = [fingerprint(identity, reply, reference) for reply, reference in pairs]
        fresh = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self.known}
        todo = list(fresh.items())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        meter = Meter("curate", "replies", len(todo), self.on_progress)
        for start in range(0, len(todo), chunk):
            part = todo[start : start + chunk]
            found = verify_all(verifier, [pair for _, pair in part], ask=self.ask, stop_asked=self.stop_asked)
            fresh_verdicts = dict(zip((key for key, _ in part), found, strict=True))
            lines = [json.dumps([key, *verdict]) + "\n" for key, verdict in fresh_verdicts.items()]
            append_durably(self.path, "".join(lines).encode())
            self.known |= fresh_verdicts
            meter.add(len(part))
        return [self.known[key] for key in keys]


TEXTS = ("id", "row_id", "topic", "prompt", "reply", "reference", "finish_reason")
COLUMNS = (*TEXTS, "verdict", "rule_number", "rule", "reason")  # verdict: right, wrong, unknown, ""; rule 0: kept
SCHEMA = pa.schema([(name, pa.int32() if name == "rule_number" else pa.string()) for name in COLUMNS])


def _write_rejected(path: Path, found: Curated, context: Context) -> None:
    lines = [_line(gone.candidate, context, gone.number, gone.rule, gone.reason) for gone in found.rejected]
    lines += [_line(one, context, 0, "", "") for one in found.kept]
    with atomic_path(path) as tmp:
        pq.write_table(pa.Table.from_pylist(lines, SCHEMA), tmp, compression="zstd", write_page_checksum=True)


def _line(one: Candidate, context: Context, number: int, rule: str, reason: str) -> dict[str, Any]:
    verdict = context.verdicts.get(one.id)
    word = {None: "unknown", True: "right", False: "wrong"}[verdict.ok] if verdict else ""
    texts = {name: getattr(one, name) for name in TEXTS}
    return texts | {"verdict": word, "rule_number": number, "rule": rule, "reason": reason}
