"""Rules that look at all replies together: duplicates, contamination, quotas, a human's verdicts, verification.

Each returns what is left out: id -> why. Which of several is kept depends on their order in the store, or on a hash of
seed and row, and on nothing else.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import DataError, MissingExtra

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from limbeck.curate.verify import Verdict
    from limbeck.curation import (
        DecontaminateRule,
        DuplicateRule,
        NearDuplicateRule,
        PassRateRule,
        QuotaRule,
        VerdictRule,
        VerifyRule,
    )
    from limbeck.types import Candidate
    from limbeck.verifiers import Verifier

    Verify = Callable[[Verifier, list[tuple[str, str]]], list[Verdict]]

WORD = re.compile(r"\w+")


@dataclass
class Context:
    """What rules know besides the replies: `verify` (cached, and stoppable), the texts that are held out, the seed; and
    what they find: the share of right replies by row, and the verdict on each reply."""

    verify: Verify
    held_out: Sequence[str] = ()
    seed: int = 0
    pass_rate: dict[str, float] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)


def verify(rule: VerifyRule, candidates: Sequence[Candidate], context: Context) -> dict[str, str]:
    missing = next((one for one in candidates if not one.reference), None)
    if missing is not None and rule.verifier.kind not in ("regex", "json_schema"):
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
            out[one.id] = "wrong"
    for row_id, replies in by_row.items():
        said = [ok for one in replies if (ok := context.verdicts[one.id].ok) is not None]
        if said:
            context.pass_rate[row_id] = sum(said) / len(said)
        right = [one for one in replies if one.id not in out]
        if rule.per_prompt is not None and len(right) > rule.per_prompt:
            for one in _ranked(right, rule.pick, context.seed)[rule.per_prompt :]:
                out[one.id] = f"right, but more than {rule.per_prompt} of the prompt ({rule.pick})"
    return {} if rule.keep_wrong else out


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


def exact_duplicates(rule: DuplicateRule, candidates: Sequence[Candidate], _context: Context) -> dict[str, str]:
    first: dict[Any, str] = {}
    out = {}
    for one in candidates:
        prompt, reply = _normal(one.prompt), _normal(one.reply)
        key = {"prompt": prompt, "reply": reply, "both": (prompt, reply)}[rule.by]
        owner = first.setdefault(key, one.row_id if rule.by == "prompt" else one.id)
        if owner != (one.row_id if rule.by == "prompt" else one.id):
            out[one.id] = f"the same {'prompt and reply' if rule.by == 'both' else rule.by} as an earlier one"
    return out


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


def near_duplicates(rule: NearDuplicateRule, candidates: Sequence[Candidate], _context: Context) -> dict[str, str]:
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as error:
        raise MissingExtra("datasketch", "curate", "the rule near_duplicates") from error
    index = MinHashLSH(threshold=rule.threshold, num_perm=rule.permutations)
    owners: dict[str, str] = {}
    out = {}
    for one in candidates:
        text = one.prompt if rule.by == "prompt" else one.reply
        owner = one.row_id if rule.by == "prompt" else one.id
        if owners.get(owner) == "in":
            continue
        words = WORD.findall(text.casefold())
        shingles = {" ".join(words[at : at + rule.shingle]) for at in range(max(len(words) - rule.shingle + 1, 1))}
        sketch = MinHash(num_perm=rule.permutations, seed=1)
        sketch.update_batch([shingle.encode() for shingle in sorted(shingles)])
        near = [name for name in index.query(sketch) if name != owner]
        if near:
            out[one.id] = f"a {rule.by} much like an earlier one"
        elif owner not in owners:
            owners[owner] = "in"
            index.insert(owner, sketch)
    return out


def decontaminate(rule: DecontaminateRule, candidates: Sequence[Candidate], context: Context) -> dict[str, str]:
    forbidden: set[int] = set()
    texts = [*(context.held_out if rule.held_out else ()), *_lines(rule.paths)]
    for text in texts:
        forbidden.update(_grams(text, rule.n))
    out = {}
    for one in candidates:
        if any(gram in forbidden for gram in _grams(f"{one.prompt}\n{one.reply}", rule.n)):
            out[one.id] = f"shares {rule.n} words in a row with what is evaluated on"
    return out


def _lines(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        file = Path(path)
        if not file.is_file():
            raise DataError(f"there is no file {path} to decontaminate against; correct the rule's paths.")
        for line in file.read_text(errors="replace").splitlines():
            try:
                found = json.loads(line) if file.suffix == ".jsonl" else line
            except ValueError as error:
                raise DataError(f"{path} has a line that is not JSON: {error}.") from error
            yield from _strings(found)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _grams(text: str, n: int) -> Iterator[int]:
    """Hashes of all runs of n words, case and punctuation aside. A text of fewer words has none."""
    words = WORD.findall(text.casefold())
    for at in range(len(words) - n + 1):
        digest = hashlib.blake2b(" ".join(words[at : at + n]).encode(), digest_size=8).digest()
        yield int.from_bytes(digest)


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
        left = allowed[topic]
        for row_id in sorted(rows, key=lambda id: _rank(context.seed, id)):
            for one in rows[row_id]:
                if left <= 0:
                    out[one.id] = f"more than {allowed[topic]} replies of the topic {topic or '(none)'}"
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


def verdicts(rule: VerdictRule, candidates: Sequence[Candidate], _context: Context) -> dict[str, str]:
    file = Path(rule.path)
    if not file.is_file():
        raise DataError(f"there is no file {rule.path} with verdicts. Export one with `limbeck review RUN --out FILE`.")
    said: dict[str, tuple[str, str]] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        table = csv.DictReader(lines)
        if not {"id", "verdict"} <= set(table.fieldnames or ()):
            raise DataError(f"{rule.path} has the columns {table.fieldnames}; it must have id and verdict.")
        for number, line in enumerate(table, 2):
            verdict = (line["verdict"] or "").strip().lower()
            if verdict not in ("", "keep", "reject"):
                raise DataError(f"{rule.path}:{number}: the verdict {verdict!r} is neither keep nor reject nor empty.")
            said[line["id"]] = (verdict, (line.get("note") or "").strip())
    known = {one.id for one in candidates}
    return {
        id: f"a human's verdict{f': {note}' if note else ''}"
        for id, (verdict, note) in said.items()
        if verdict == "reject" and id in known
    }


TOGETHER: dict[str, Callable[..., dict[str, str]]] = {
    "verify": verify,
    "pass_rate": pass_rate,
    "exact_duplicates": exact_duplicates,
    "near_duplicates": near_duplicates,
    "decontaminate": decontaminate,
    "quota": quota,
    "verdicts": verdicts,
}
