"""Rules that look at all replies together: verification, quotas, a human's verdicts, and those of `overlap`.

Each returns what is left out: id -> why; replies are counted by what stands before a colon. Which of several is kept
depends on their order in the store, or on a hash of seed and row, and on nothing else.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.curate.context import Context
from limbeck.curate.dedup import decontaminate, exact_duplicates, near_duplicates
from limbeck.errors import DataError
from limbeck.recipe import needs_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from limbeck.curate.context import Candidate
    from limbeck.recipe import PassRateRule, QuotaRule, VerdictRule, VerifyRule


def verify(rule: VerifyRule, candidates: Sequence[Candidate], context: Context) -> dict[str, str]:
    missing = next((one for one in candidates if not one.reference), None)
    if missing is not None and needs_reference(rule.verifier):
        raise DataError(
            f"row {missing.row_id} ({missing.topic or 'no topic'}) has no reference to verify its reply against. Name "
            "the column with data.source.reference, or the topics that have one with `topics` of this rule."
        )
    verdicts = context.verify(rule.verifier, [(one.reply, one.reference) for one in candidates])
    by_row: dict[str, list[Candidate]] = defaultdict(list)
    out = {}
    for one, verdict in zip(candidates, verdicts, strict=True):
        context.verdicts[one.id] = verdict
        by_row[one.row_id].append(one)
        if verdict.ok is None and not rule.keep_unknown:
            out[one.id] = f"unknown: {verdict.reason}"
        elif verdict.ok is False:
            out[one.id] = f"wrong: {verdict.reason}" if verdict.reason else "wrong"
    _note_references(candidates, context)
    for row_id, replies in by_row.items():
        said = [ok for one in replies if (ok := context.verdicts[one.id].ok) is not None]
        if said:
            context.pass_rate[row_id] = sum(said) / len(said)
        right = [one for one in replies if one.id not in out]
        if rule.per_prompt is not None and len(right) > rule.per_prompt:
            for one in _ranked(right, rule.pick, context.seed)[rule.per_prompt :]:
                out[one.id] = f"right, but more than {rule.per_prompt} of the prompt ({rule.pick})"
    return {} if rule.keep_wrong else out


def _note_references(candidates: Sequence[Candidate], context: Context) -> None:
    """Say how many rows could not be judged because of their own references, and which was the first."""
    blamed = {one.row_id: context.verdicts[one.id] for one in candidates if context.verdicts[one.id].blames_reference}
    if blamed:
        row_id, verdict = next(iter(blamed.items()))
        context.notes.append(
            f"verify: {len(blamed)} rows have a reference that the verifier cannot read; their replies are unknown, "
            f"not wrong. Row {row_id}: {verdict.reason}."
        )


def _ranked(replies: list[Candidate], pick: str, seed: int) -> list[Candidate]:
    if pick == "shortest":
        return sorted(replies, key=lambda one: (len(one.reply), one.id))
    if pick == "random":
        return sorted(replies, key=lambda one: _rank(seed, one.id))
    return replies


def _rank(seed: int, id: str) -> str:
    return hashlib.sha256(f"{seed}:{id}".encode()).hexdigest()


def pass_rate(rule: PassRateRule, candidates: Sequence[Candidate], context: Context) -> dict[str, str]:
    unknown = [one for one in candidates if one.row_id not in context.pass_rate]
    out = {one.id: "no pass rate is known" for one in unknown}
    for one in candidates:
        rate = context.pass_rate.get(one.row_id)
        if rate is not None and not rule.min <= rate <= rule.max:
            out[one.id] = f"pass rate {'below' if rate < rule.min else 'above'} the bounds"
    return out


def quota(rule: QuotaRule, candidates: Sequence[Candidate], context: Context) -> dict[str, str]:
    topics: dict[str, dict[str, list[Candidate]]] = defaultdict(lambda: defaultdict(list))
    for one in candidates:
        topics[one.topic][one.row_id].append(one)
    sizes = {topic: sum(map(len, rows.values())) for topic, rows in topics.items()}
    allowed = {topic: min(size, rule.per_topic or size) for topic, size in sizes.items()}
    if rule.total is not None:
        allowed = _share(rule.total, allowed, rule.weights)
    out = {}
    for topic, rows in topics.items():
        left, name = allowed[topic], topic.replace(":", " ") or "(none)"
        for row_id in sorted(rows, key=lambda id: _rank(context.seed, id)):
            for one in rows[row_id]:
                if left <= 0:
                    out[one.id] = f"more than {allowed[topic]} replies of the topic {name}"
                left -= 1
    return out


def _share(total: int, most: dict[str, int], weights: dict[str, float]) -> dict[str, int]:
    """`total` divided by weight among topics, none above what it has; what one cannot use goes to the others."""
    given = dict.fromkeys(most, 0)
    while (left := total - sum(given.values())) > 0:
        hungry = sorted(topic for topic in most if given[topic] < most[topic])
        if not hungry:
            break
        weight = sum(weights.get(topic, 1.0) for topic in hungry)
        before = sum(given.values())
        for topic in hungry:
            more = int(left * weights.get(topic, 1.0) / weight)
            given[topic] = min(given[topic] + more, most[topic])
        if sum(given.values()) == before:  # less than one for each: one by one
            for topic in sorted(hungry, key=lambda topic: (-weights.get(topic, 1.0), topic))[:left]:
                given[topic] += 1
    return given


def verdicts(rule: VerdictRule, candidates: Sequence[Candidate], context: Context) -> dict[str, str]:
    said = dict(_read_verdicts(Path(rule.path)))
    unknown = said.keys() - context.ids
    if said and len(unknown) == len(said):
        raise DataError(
            f"none of the {len(said)} ids with a verdict in {rule.path} is of this run, such as {min(unknown)!r}. Ids "
            "change with the teacher, its sampling and the data: review this run, or remove the rule."
        )
    if unknown:
        context.notes.append(f"verdicts: {len(unknown)} of {len(said)} are on replies that this run does not have.")
    context.wanted.update(id for id, (verdict, _) in said.items() if verdict == "keep")
    rejected = {id: note for id, (verdict, note) in said.items() if verdict == "reject"}
    return {
        one.id: f"a human's verdict{f': {note}' if (note := rejected[one.id]) else ''}"
        for one in candidates
        if one.id in rejected
    }


def _read_verdicts(file: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """(id, (keep or reject, note)) of lines that have a verdict; commas, semicolons or tabs between cells."""
    if not file.is_file():
        raise DataError(f"there is no file {file} with verdicts. Export one with `limbeck review RUN --out FILE`.")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 ({error.reason}); save it as CSV in UTF-8.") from error
    head = text.partition("\n")[0]
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    if not {"id", "verdict"} <= set(table.fieldnames or ()):
        raise DataError(f"{file} has the columns {table.fieldnames}; it must have id and verdict.")
    for line in table:
        verdict = (line["verdict"] or "").strip().lower()
        if verdict not in ("", "keep", "reject"):
            where = f"{file}:{table.line_num}"
            raise DataError(f"{where}: the verdict {verdict!r} is neither keep nor reject nor empty.")
        if verdict:
            yield line["id"], (verdict, (line.get("note") or "").strip())


TOGETHER: dict[str, Callable[..., dict[str, str]]] = {
    "verify": verify,
    "pass_rate": pass_rate,
    "exact_duplicates": exact_duplicates,
    "near_duplicates": near_duplicates,
    "decontaminate": decontaminate,
    "quota": quota,
    "verdicts": verdicts,
}
