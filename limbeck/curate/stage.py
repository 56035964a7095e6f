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
from limbeck.curate.verdicts import Verdict
from limbeck.curate.verifiers import verify_all
from limbeck.errors import DataError, RunDirError, Stopped
from limbeck.recipe import DecontaminateRule, Judge, VerdictRule
from limbeck.system.atomic import atomic_path, atomic_write, fingerprint, sha256_file
from limbeck.system.jsonl import append_durably
from limbeck.system.meter import Meter
from limbeck.system.sealed import read_json, read_sealed, sealed_line, write_json
from limbeck.text.finish import finish_reason
from limbeck.types import Callbacks, Row, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedTokenizerBase

    from limbeck.curate.verifiers import Ask
    from limbeck.recipe import Recipe, Verifier

JUDGED_BY = 2
"""Raised whenever a verifier of ours judges otherwise than before: what an older one said is then not taken up. A model
that judges is asked, and paid, once."""

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
    content_of: Callable[[Verifier], dict[str, str]],
    callbacks: Callbacks,
) -> dict[str, Any]:
    """Apply the recipe's rules to the training replies among `candidates` and write RUN/curate. Returns its summary.

    `content_of` says what the files are that a verifier reads: a verdict holds for that content alone.

    Raises DataError when nothing is left, naming the rule that took most; and what the rules raise.
    """
    train = [one for one in candidates if one.split == "train"]
    held_out = [one for one in candidates if one.split != "train"]
    stop_asked = callbacks.stop_asked
    cache = _Verdicts(folder / "verdicts.jsonl", ask, content_of, callbacks)
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
    write_json(folder / "summary.json", summary)
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
    kept = read_json(file, "`limbeck run` with its recipe curates anew.", list)
    if not all(isinstance(one, str) for one in kept):
        raise RunDirError(f"{file} is damaged. `limbeck run` with its recipe curates anew.")
    return set(kept)


class _Verdicts:
    """Verdicts, remembered on disk."""

    def __init__(
        self, path: Path, ask: Ask | None, content_of: Callable[[Verifier], dict[str, str]], callbacks: Callbacks
    ) -> None:
        self.path, self.ask, self.content_of, self.callbacks = path, ask, content_of, callbacks
        self.known: dict[str, Verdict] = {}
        for number, line in read_sealed(path):
            if (verdict := _remembered(line)) is None:
                callbacks.on_message(f"line {number} of {path.name} is damaged; its reply is verified again")
            else:
                self.known[verdict[0]] = verdict[1]

    def verify(self, verifier: Verifier, pairs: list[tuple[str, str]]) -> list[Verdict]:
        identity, chunk = verifier.stored_form(), CHUNK
        if isinstance(verifier, Judge) and verifier.endpoint:  # how fast it is asked changes no verdict
            identity["endpoint"], chunk = verifier.endpoint.identity, verifier.endpoint.concurrency
        if content := self.content_of(verifier):
            identity["content"] = content
        by = () if isinstance(verifier, Judge) else (JUDGED_BY,)
        keys = [fingerprint(identity, *by, reply, reference) for reply, reference in pairs]
        fresh = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self.known}
        todo = list(fresh.items())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        meter = Meter("curate", "replies", len(todo), self.callbacks.on_progress)
        for start in range(0, len(todo), chunk):
            part = todo[start : start + chunk]
            found = verify_all(verifier, [pair for _, pair in part], ask=self.ask, stop_asked=self.callbacks.stop_asked)
            fresh_verdicts = dict(zip((key for key, _ in part), found, strict=True))
            lines = [sealed_line({"key": key, **verdict._asdict()}) for key, verdict in fresh_verdicts.items()]
            append_durably(self.path, b"".join(lines))
            self.known |= fresh_verdicts
            meter.add(len(part))
        return [self.known[key] for key in keys]


def _remembered(line: Any) -> tuple[str, Verdict] | None:
    """The key and verdict of a line; None where it is damaged. Earlier versions wrote bare lists."""
    if isinstance(line, dict):
        line = [line.get(name) for name in ("key", "ok", "reason")]
    match line:
        case [str(key), bool() | None as ok, str(reason)]:
            return key, Verdict(ok, reason)
    return None


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
