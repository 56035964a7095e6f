"""What is known of an expert: what it is for, what it comes from, how well it does, what it costs."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from limbeck.errors import ExpertError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

SCHEMA = 1
MOST_BYTES = 8 * 2**20
"""Of a card or of one line of JSON: more is no card."""

Scores = dict[str, dict[str, dict[str, float | int]]]
"""scores[model][metric] is {"value", "low", "high", "n"}: a mean over n held-out rows and its 95 % interval; `model` is
"student" (this expert), "teacher" or "twin"."""


@dataclass(frozen=True)
class Scope:
    """What an expert is for.

    `examples` are prompts that it was made for, `counter_examples` prompts that are somebody else's. `transfer_set`
    says what it learnt from: source, licence, rows, tokens, topics (rows of each), longest_row. `languages` are codes.
    `max_input_tokens` is what its context holds, None where the model does not say. `chat`: conversations, not plain
    text.
    """

    domain: str
    description: str = ""
    languages: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    counter_examples: tuple[str, ...] = ()
    transfer_set: dict[str, Any] = field(default_factory=dict)
    max_input_tokens: int | None = None
    chat: bool = False


@dataclass(frozen=True)
class ExpertCard:
    """expert.json, but for name and version.

    `quality` names the measure that `prompts.jsonl` holds per prompt: "agreement" (with the teacher's first choice) or
    "correct". `tokens_per_second` are tokens written greedily on `machine`, one reply at a time; `memory_bytes` what
    the open model added to the process there, at its peak. `dtype` is the precision that the model is opened in ("auto"
    where its format decides). `teacher` is its name in the recipe, `teacher_parameters` its size (0 where it is not
    known: it was behind an endpoint), `base_model` its hub id where it has one;
    `teacher_licence` and `licence` (of this expert: the same terms) are None where nothing states them. `role` is
    "student" or "twin". `parity` is what an export was judged to lose against its source, {} for the source itself.
    `notes` say what a reader of the scores must know.
    """

    scope: Scope
    created: str = ""
    role: str = "student"
    format: str = "safetensors"
    quant: str = ""
    dtype: str = "auto"
    parameters: int = 0
    bytes: int = 0
    memory_bytes: int = 0
    tokens_per_second: float = 0.0
    machine: str = ""
    teacher: str = ""
    teacher_parameters: int = 0
    base_model: str | None = None
    teacher_licence: str | None = None
    licence: str | None = None
    data_source: str = ""
    lineage: tuple[str, ...] = ()
    recipe_fingerprint: str = ""
    recipe_yaml: str = ""
    fingerprint: str = ""
    tokenizer_hash: str = ""
    quality: str = "agreement"
    notes: tuple[str, ...] = ()
    scores: Scores = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptRow:
    """One prompt of the transfer set. `quality`, of held-out rows only: how well "expert", "teacher" and "twin" do
    there, 0 to 1."""

    id: str
    split: str  # "train" or "heldout"
    prompt: str
    topic: str = ""
    quality: dict[str, float] = field(default_factory=dict)


_CARD = TypeAdapter(ExpertCard)
_ROW = TypeAdapter(PromptRow)


def card_json(name: str, version: str, card: ExpertCard) -> str:
    """expert.json. Raises ValueError for what JSON cannot say (NaN, infinity)."""
    return json.dumps(
        {"schema": SCHEMA, "name": name, "version": version, **asdict(card)},
        indent=1,
        ensure_ascii=False,
        allow_nan=False,
    )


def read_card_json(text: str) -> tuple[str, str, ExpertCard]:
    """Name, version and card of expert.json. Raises ExpertError saying what is wrong with it."""
    values = parse_json(text, "expert.json")
    if not isinstance(values, dict):
        raise ExpertError("expert.json is not an object")
    if values.get("schema") != SCHEMA:
        raise ExpertError(f"expert.json has schema {values.get('schema')!r}; this Limbeck reads {SCHEMA}. Update it")
    name, version = values.get("name"), values.get("version")
    if not isinstance(name, str) or not isinstance(version, str):
        raise ExpertError("expert.json names no expert and version")
    try:
        return name, version, _CARD.validate_python(values)
    except ValidationError as error:
        raise ExpertError(f"expert.json is not a card: {_first(error)}") from error


def rows_jsonl(rows: Iterable[PromptRow]) -> str:
    """prompts.jsonl."""
    lines = ({key: value for key, value in asdict(row).items() if value or key != "quality"} for row in rows)
    return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)


def read_row(line: str, where: str) -> PromptRow:
    """A line of prompts.jsonl. Raises ExpertError naming `where`."""
    try:
        row = _ROW.validate_python(parse_json(line, where))
    except ValidationError as error:
        raise ExpertError(f"{where} is not a prompt: {_first(error)}") from error
    if row.split not in ("train", "heldout") or any(not 0 <= value <= 1 for value in row.quality.values()):
        raise ExpertError(f"{where} is not a prompt: its split is train or heldout, its quality within 0 and 1")
    return row


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1; of one that is too long only its beginning, which `parse_json` refuses."""
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from enumerate(iter(lambda: file.readline(MOST_BYTES + 1), ""), 1)


def parse_json(text: str, where: str) -> Any:
    """JSON of bounded size and depth, without NaN or infinity. Raises ExpertError naming `where`."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    if len(text) > MOST_BYTES:
        raise ExpertError(f"{where} has {len(text)} characters; at most {MOST_BYTES} are read")
    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ExpertError(f"{where} is not readable JSON ({str(error)[:200]})") from error


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    return f"{'.'.join(map(str, found['loc']))}: {found['msg']}"


# ---- names and versions: they become folders, so nothing else is let through -----------------------------------------

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
VERSION = re.compile(
    r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})"
    r"(?:-((?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(?:\+([0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?",
    re.ASCII,
)
"""Semantic Versioning 2.0.0 (semver.org), numbers of at most nine digits."""

LONGEST_VERSION = 64
FIRST = "1.0.0"


def check_name(name: str) -> str:
    """The name itself. Raises ExpertError for any other than a-z, 0-9, '.', '_', '-'; at most 64 characters."""
    if not NAME.fullmatch(name):
        raise ExpertError(
            f"{name[:80]!r} is no name of an expert; allowed are a-z, 0-9, '.', '_' and '-', at most 64 characters, "
            "the first a letter or digit, such as code-helper."
        )
    return name


def check_version(version: str) -> str:
    """The version itself. Raises ExpertError unless it is a semantic version of at most 64 characters."""
    if len(version) > LONGEST_VERSION or not VERSION.fullmatch(version):
        raise ExpertError(
            f"{version[:80]!r} is no version; allowed are semantic versions of at most {LONGEST_VERSION} characters, "
            "such as 1.0.0 or 1.2.0-rc.1."
        )
    return version


def precedence(version: str) -> tuple[object, ...]:
    """What versions are sorted by: precedence as in semver.org, point 11; build metadata last, so that no two are
    equal."""
    found = VERSION.fullmatch(version)
    assert found is not None, version
    numbers = tuple(int(part) for part in found.groups()[:3])
    before = found[4]
    parts = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in (before or "").split(".") if part)
    return (numbers, before is None, parts, found[5] or "")


def following(version: str) -> str:
    """The next minor version."""
    major, minor, _ = re.split(r"[.+-]", version)[:3]
    return f"{major}.{int(minor) + 1}.0"
