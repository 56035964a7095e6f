"""Rules on what replies share, with one another or with what is evaluated on. Each returns id -> why it is left out."""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.curate.ngrams import runs, words
from limbeck.errors import DataError, MissingExtra
from limbeck.recipe import MISSED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from limbeck.curate.context import Candidate, Context
    from limbeck.recipe import DecontaminateRule, DuplicateRule, NearDuplicateRule

DOUBT = 0.15
"""Estimates of similarity this far below what is asked for are not looked at again: four standard errors or so."""

COMPARED = 64
"""Texts that one is compared with exactly, the likeliest. Replies made to a template are all somewhat alike."""

QUOTED = 60


# ---- duplicates ------------------------------------------------------------------------------------------------------


def exact_duplicates(rule: DuplicateRule, candidates: Sequence[Candidate], _context: Context) -> dict[str, str]:
    first: dict[Any, str] = {}
    out = {}
    what = "prompt and reply" if rule.by == "both" else rule.by
    for one in candidates:
        prompt, reply = (" ".join(text.casefold().split()) for text in (one.prompt, one.reply))
        key = {"prompt": prompt, "reply": reply, "both": (prompt, reply)}[rule.by]
        own = one.row_id if rule.by == "prompt" else one.id
        owner = first.setdefault(key, own)
        if owner != own:
            out[one.id] = f"the same {what} as an earlier one: {owner}"
    return out


@dataclass
class _Kept:
    """What stays: owners, their distinct shingles as sorted numbers, and their signatures of hashes, with room."""

    signatures: np.ndarray
    shingles: list[np.ndarray] = field(default_factory=list)
    owners: list[str] = field(default_factory=list)

    def add(self, owner: str, signature: np.ndarray, shingles: np.ndarray) -> int:
        place = len(self.owners)
        if place == len(self.signatures):
            self.signatures = np.concatenate([self.signatures, np.zeros_like(self.signatures)])
        self.signatures[place] = signature
        self.shingles.append(shingles)
        self.owners.append(owner)
        return place

    def most_alike(
        self, places: list[int], signature: np.ndarray, shingles: np.ndarray, threshold: float
    ) -> tuple[float, str]:
        """The largest Jaccard similarity among those at `places`, exactly, and whose it is; (0, "") where estimates say
        that all are far below."""
        at = np.array(sorted(places), np.int64)
        estimates = (self.signatures[at] == signature).mean(1)
        likely = np.argsort(-estimates, kind="stable")[:COMPARED]
        best = (0.0, "")
        for place in at[likely[estimates[likely] >= threshold - DOUBT]].tolist():
            share = _jaccard(self.shingles[place], shingles)
            best = (share, self.owners[place]) if share > best[0] else best
        return best


def near_duplicates(rule: NearDuplicateRule, candidates: Sequence[Candidate], _context: Context) -> dict[str, str]:
    """What a banded index finds is looked at again exactly: no pair below the threshold is taken for one above."""
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as error:
        raise MissingExtra("datasketch", "curate", "the rule near_duplicates") from error
    wide = band_width(rule.threshold, rule.permutations)
    index = MinHashLSH(num_perm=rule.permutations, params=(rule.permutations // wide, wide))
    empty = MinHash(num_perm=rule.permutations, seed=1, hashfunc=int)
    kept = _Kept(np.zeros((64, rule.permutations), empty.hashvalues.dtype))
    fate: dict[str, str | None] = {}
    for one in _preferred(rule, candidates):
        own = one.row_id if rule.by == "prompt" else one.id
        if own in fate:
            continue
        shingles = _shingles(_compared(rule, one), rule.shingle)
        hashes = empty.copy()
        hashes.update_batch(shingles >> np.uint64(32))
        places: list[int] = index.query(hashes)  # type: ignore[assignment]
        share, owner = kept.most_alike(places, hashes.hashvalues, shingles, rule.threshold)
        if share >= rule.threshold:
            fate[own] = f"a {rule.by} much like another: {share:.2f} of {owner}"
        else:
            fate[own] = None
            index.insert(kept.add(own, hashes.hashvalues, shingles), hashes, check_duplication=False)
    owners = {one.id: one.row_id if rule.by == "prompt" else one.id for one in candidates}
    return {id: why for id, own in owners.items() if (why := fate[own]) is not None}


def band_width(threshold: float, permutations: int) -> int:
    """Hashes in a band, as many as leave the chance to overlook a pair of this similarity below `MISSED`: fewer pairs
    are then looked at in vain (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4)."""
    fits = [wide for wide in range(1, permutations + 1) if (1 - threshold**wide) ** (permutations // wide) <= MISSED]
    return max(fits, default=1)


def _compared(rule: NearDuplicateRule, one: Candidate) -> str:
    return one.prompt if rule.by == "prompt" else one.reply


def _preferred(rule: NearDuplicateRule, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """Those that stay where several are alike come first."""
    if rule.prefer == "first":
        return candidates
    sign = 1 if rule.prefer == "shortest" else -1
    return sorted(candidates, key=lambda one: (sign * len(_compared(rule, one)), one.id))


def _shingles(text: str, n: int) -> np.ndarray:
    """Distinct runs of n words; of a shorter text, the whole."""
    found = words(text) or [text.strip()]
    return np.unique(runs(found, min(n, len(found))))


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


# ---- contamination ---------------------------------------------------------------------------------------------------


class _Evaluated(NamedTuple):
    """What is evaluated on: distinct runs of words, sorted, and the text that each is from; texts of fewer words, as a
    whole. `names` says where a text stands."""

    runs: np.ndarray
    texts: np.ndarray
    short: dict[str, int]
    names: list[str]

    def found(self, numbers: np.ndarray) -> np.ndarray:
        """Which of the runs of a text are among them: bool."""
        at = np.minimum(np.searchsorted(self.runs, numbers), max(len(self.runs) - 1, 0))
        return self.runs[at] == numbers if len(self.runs) else np.zeros(len(numbers), bool)


def decontaminate(rule: DecontaminateRule, candidates: Sequence[Candidate], context: Context) -> dict[str, str]:
    known = _evaluated(rule, context)
    shared: dict[str, np.ndarray] = {}
    out: dict[str, str] = {}
    rows: dict[int, set[str]] = defaultdict(set)
    common = math.inf if rule.common is None else rule.common
    for one in candidates:
        whole = " ".join(words(one.prompt))
        if whole in known.short:
            out[one.id] = f"its prompt is one of what is evaluated on: {known.names[known.short[whole]]}"
        numbers = runs(words(_both(one)), rule.n)
        shared[one.id] = numbers[known.found(numbers)]
        for number in shared[one.id].tolist() if rule.common is not None else ():
            if len(rows[number]) <= common:  # more need not be known
                rows[number].add(one.row_id)
    template = {number for number, ids in rows.items() if len(ids) > common}
    for one in candidates:
        told = [number for number in shared[one.id].tolist() if number not in template]
        if told and one.id not in out:
            source = known.names[known.texts[np.searchsorted(known.runs, np.uint64(told[0]))]]
            why = f"shares {rule.n} words in a row with what is evaluated on"
            out[one.id] = f"{why}: {_quote(one, told[0], rule.n)} ({source})"
    if template:
        some = next(one for one in candidates if template.intersection(shared[one.id].tolist()))
        number = next(number for number in shared[some.id].tolist() if number in template)
        context.notes.append(
            f"decontaminate: {len(template)} runs of {rule.n} words that more than {rule.common} prompts share were "
            f"taken for a template and passed over, such as {_quote(some, number, rule.n)}."
        )
    return out


def _both(one: Candidate) -> str:
    return f"{one.prompt}\n{one.reply}"


def _quote(one: Candidate, number: int, n: int) -> str:
    """The words behind a number, from a text that has them."""
    found = words(_both(one))
    at = runs(found, n).tolist().index(number)
    text = " ".join(found[at : at + n])
    return f'"{text if len(text) <= QUOTED else text[: QUOTED - 3] + "..."}"'


def _evaluated(rule: DecontaminateRule, context: Context) -> _Evaluated:
    names: list[str] = []
    short: dict[str, int] = {}
    numbers, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for name, text, whole in _texts(rule, context):
        names.append(name)
        found = words(text)
        fresh = runs(found, rule.n)
        numbers.append(fresh)
        owners.append(np.full(len(fresh), len(names) - 1))
        if whole and 0 < len(found) < rule.n:
            short.setdefault(" ".join(found), len(names) - 1)
    distinct, first = np.unique(np.concatenate(numbers), return_index=True)
    return _Evaluated(distinct, np.concatenate(owners)[first], short, names)


def _texts(rule: DecontaminateRule, context: Context) -> Iterator[tuple[str, str, bool]]:
    """(where, text, whether a prompt that equals it is contaminated) of all that is evaluated on."""
    for one in context.held_out if rule.held_out else ():
        yield f"held-out row {one.row_id}", one.prompt, True
        yield f"held-out row {one.row_id}", _both(one), False
    for path in rule.paths:
        yield from ((f"{path}:{number}", text, True) for number, text in _lines(Path(path)))


def unread(file: Path) -> str | None:
    """Why a file is not one to decontaminate against; None where it is. What is in an archive, or of another kind,
    would be searched in vain."""
    if not file.is_file():
        return f"there is no file {file} to decontaminate against; correct the rule's paths."
    if file.suffix not in (*TABLES, ".jsonl", *TEXTS):
        allowed = ", ".join((*TABLES, ".jsonl", *TEXTS))
        return f"{file}: {file.suffix or 'no'} extension; allowed are {allowed}. Unpack, convert or rename it."
    return None


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Every text of a file, numbered by line or row: of tables and JSONL all strings, of a text its lines."""
    if why := unread(file):
        raise DataError(why)
    found = TABLES.get(file.suffix, _text_rows)(file)
    try:
        for number, value in found:
            yield from ((number, text) for text in _strings(value))
    except (pa.ArrowException, csv.Error, OSError) as error:
        raise DataError(f"{file} cannot be read: {error}. Is it whole?") from error


def _text_rows(file: Path) -> Iterator[tuple[int, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                yield number, json.loads(text) if file.suffix == ".jsonl" and text.strip() else text
            except UnicodeDecodeError as error:
                raise DataError(f"{file}:{number} is not valid UTF-8; convert the file.") from error
            except (ValueError, RecursionError) as error:
                raise DataError(f"{file}:{number} is not JSON: {error}. Mend the line, or name a text file.") from error


def _csv_rows(file: Path) -> Iterator[tuple[int, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines)
        try:
            yield from ((reader.line_num, row) for row in reader)
        except UnicodeDecodeError as error:
            raise DataError(f"{file}:{reader.line_num} is not valid UTF-8; convert the file.") from error


def _parquet_rows(file: Path) -> Iterator[tuple[int, Any]]:
    number = 0
    with contextlib.closing(pq.ParquetFile(file, page_checksum_verification=True)) as table:
        for batch in table.iter_batches(batch_size=BATCH_ROWS):
            for index in range(batch.num_rows):
                number += 1
                yield number, [column[index].as_py() for column in batch.columns]


TABLES: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {".parquet": _parquet_rows, ".csv": _csv_rows}
TEXTS = (".txt", ".md")
BATCH_ROWS = 64


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
