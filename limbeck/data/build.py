"""The data stage: every row is read, encoded, deduplicated and split, and what became of each is counted."""

from __future__ import annotations

import logging
import platform
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from limbeck.data import Sample, count_rows, read_examples, row_id, source_files, split_of, write_rows
from limbeck.data.prompts import prompt_id, shared_prompts
from limbeck.data.table import VERSION as ROWS_VERSION
from limbeck.errors import DataError, EmptyRow, LongRow, RecipeError, UnsupervisedRow
from limbeck.recipe import GenerateMode, Recipe, StdlibSource
from limbeck.system.atomic import sha256_file
from limbeck.system.meter import Meter
from limbeck.system.sealed import write_json
from limbeck.text.chat_template import TemplateSettings
from limbeck.text.encode import Encoded, Encoder
from limbeck.types import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerBase

    from limbeck.system.rundir import RunDir
    from limbeck.text.encode import Example
    from limbeck.types import OnProgress

logger = logging.getLogger(__name__)

COMPLAINTS = 20
"""Messages about unusable rows that are kept."""

PROGRESS_SECONDS = 0.2


@dataclass
class DataSummary:
    """What became of the rows: RUN/data/summary.json.

    `read` counts all rows; `bad` (malformed), `empty`, `unsupervised` (no token to learn from), `long_skipped` and
    `duplicates` were left out; `truncated` were cut. `available` are the usable rows of each split, `train` and
    `heldout` those used. `tokens` and `supervised` are of the rows used; `topics` their numbers by topic and split.
    Of the available rows that were not cut, `replies` are the supervised spans, `ended` those that end in a token which
    stops generation.
    """

    read: int = 0
    bad: int = 0
    empty: int = 0
    unsupervised: int = 0
    long_skipped: int = 0
    truncated: int = 0
    duplicates: int = 0
    available: dict[str, int] = field(default_factory=dict)
    train: int = 0
    heldout: int = 0
    tokens: int = 0
    supervised: int = 0
    topics: dict[str, dict[str, int]] = field(default_factory=dict)
    replies: int = 0
    ended: int = 0
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def complain(self, message: str) -> None:
        logger.debug("a row is left out: %s", message)
        if len(self.complaints) < COMPLAINTS:
            self.complaints.append(message)

    def on_bad(self, message: str) -> None:
        """A row that the reader could not use."""
        self.read += 1
        self.bad += 1
        self.complain(message)

    def doubt(self, num_shared: int) -> None:
        """What is sound and yet worth knowing."""
        if num_shared:
            self.notes.append(
                f"{num_shared} prompts have several replies; the rows of one are all trained on or all held out."
            )
        if warning := never_ends(self.replies, self.ended):
            self.warnings.append(warning)

    def leave_out(self, error: DataError) -> None:
        """A row that the encoder could not use."""
        self.long_skipped += isinstance(error, LongRow)
        self.empty += isinstance(error, EmptyRow)
        self.unsupervised += isinstance(error, UnsupervisedRow)
        self.bad += not isinstance(error, LongRow | EmptyRow | UnsupervisedRow)
        self.complain(str(error))


def never_ends(replies: int, ended: int) -> str | None:
    """A sentence where most replies do not end in a token that stops generation: the student would not learn to."""
    if ended * 2 >= replies:
        return None
    return (
        f"{replies - ended} of {replies} replies end in no token that stops generation: the student will never learn "
        "to end a reply. The chat template ends turns with nothing, or with an ordinary text. Choose a tokenizer with "
        "another template, or join prompt and completion as plain text, which adds the end token: "
        "data.chat_template=false."
    )


def data_fingerprint(recipe: Recipe) -> list[Any]:
    """All that the rows depend on besides tokenizer and seed: the recipe's section, and the content of every file read,
    or the interpreter's version for its standard library. A hub name stands for itself. Raises DataError for missing
    files."""
    source = recipe.data.source
    parts: list[Any] = [ROWS_VERSION, recipe.data.stored_form(), isinstance(recipe.trace.mode, GenerateMode)]
    if isinstance(source, StdlibSource):
        return [*parts, platform.python_implementation(), platform.python_version()]
    return [*parts, [[str(file), sha256_file(file)] for file in source_files(source)]]


def run_data(
    recipe: Recipe,
    run: RunDir,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_context: int | None,
    num_rows: int | None = None,
    on_progress: OnProgress,
) -> DataSummary:
    """Write RUN/data/rows.parquet and RUN/data/summary.json. `max_context` tokens and ids below `num_rows` are what the
    model reads (None: any).

    Rows that cannot be used stop the stage or are counted, as the recipe says. Raises DataError naming file and row,
    and when no row is left to train on or to hold out; TeacherError when rows need a chat template that is not there.
    """
    data = recipe.data
    summary = DataSummary()
    samples = {"train": Sample(data.limit, recipe.seed), "heldout": Sample(data.limit_heldout, recipe.seed)}
    seen: set[int] = set()
    shared = shared_prompts(recipe)
    encoder = replace(encoder_of(recipe, tokenizer, max_context), num_rows=num_rows)
    for example in _watched(recipe, summary, on_progress):
        encoded = _encode(encoder, example, recipe, summary)
        if encoded is None:
            continue
        id = row_id(encoded.text)
        if int(id, 16) in seen:
            summary.duplicates += 1
            continue
        seen.add(int(id, 16))
        prompt = prompt_id(example)
        split = split_of(prompt if prompt in shared else id, data.holdout)  # type: ignore[arg-type]
        replies, ended = encoder.count_ends(encoded)
        summary.replies, summary.ended = summary.replies + replies, summary.ended + ended
        samples[split].add(
            Row(
                id,
                split,
                example.topic,
                encoded.text,
                encoded.ids,
                encoded.spans,
                example.source,
                messages=encoder.asked(example),
                reference=example.truth,
            )
        )
    rows = samples["train"].rows() + samples["heldout"].rows()
    _count(summary, rows, samples)
    summary.doubt(len(shared))
    logger.info("%d rows read: %d unusable, %d duplicates", summary.read, summary.bad, summary.duplicates)
    _refuse_empty_splits(summary, data.holdout)
    write_rows(run.path / "data" / "rows.parquet", rows)
    write_json(run.path / "data" / "summary.json", asdict(summary))
    return summary


def encoder_of(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, max_context: int | None = None) -> Encoder:
    """What makes the recipe's rows tokens. Raises RecipeError where replies leave no room for a prompt."""
    data, mode = recipe.data, recipe.trace.mode
    length = data.max_length
    if max_context is not None:
        reply = mode.max_tokens if isinstance(mode, GenerateMode) else 0
        length = min(length, max_context - reply)
        if length < 1:
            raise RecipeError(
                f"trace.mode.max_tokens is {reply}, and the teacher's context has {max_context} tokens for prompt and "
                "reply together; choose fewer."
            )
    return Encoder(
        tokenizer,
        max_length=length,
        long_rows=data.long_rows,
        chat_template=data.chat_template,
        need_reply=not isinstance(mode, GenerateMode),
        settings=TemplateSettings(data.template_values, data.template_day),
    )


def _watched(recipe: Recipe, summary: DataSummary, on_progress: OnProgress) -> Iterator[Example]:
    """The examples, counted, with progress told now and then and at the end."""
    source = recipe.data.source
    examples = read_examples(source, bad_rows=recipe.data.bad_rows, on_bad=summary.on_bad)
    total = count_rows(source)
    if total is None:
        listed = list(examples)
        examples, total = iter(listed), len(listed)
    meter = Meter("data", "rows", total, on_progress, every=PROGRESS_SECONDS)
    for example in examples:
        summary.read += 1
        yield example
        meter.total = max(total, summary.read + 1)  # the last report is the one below
        meter.add(summary.read - meter.done)
    meter.total = summary.read
    meter.add(summary.read - meter.done)


def _encode(encoder: Encoder, example: Example, recipe: Recipe, summary: DataSummary) -> Encoded | None:
    """The row as tokens; None when it cannot be used and the recipe says to pass over such rows."""
    try:
        encoded = encoder.encode(example)
    except DataError as error:
        policy = recipe.data.long_rows if isinstance(error, LongRow) else recipe.data.bad_rows
        if policy != "skip":
            raise
        summary.leave_out(error)
        return None
    summary.truncated += encoded.truncated
    return encoded


def _count(summary: DataSummary, rows: list[Row], samples: dict[str, Sample]) -> None:
    numbers = Counter((row.topic, row.split) for row in rows)
    summary.available = {split: sample.added for split, sample in samples.items()}
    summary.train = sum(row.split == "train" for row in rows)
    summary.heldout = len(rows) - summary.train
    summary.tokens = sum(len(row.ids) for row in rows)
    summary.supervised = sum(row.num_supervised for row in rows)
    topics = sorted({row.topic for row in rows})
    summary.topics = {topic: {split: numbers[topic, split] for split in samples} for topic in topics}
    unseen = [repr(topic) for topic, count in summary.topics.items() if not count["train"]]
    if unseen and summary.train:
        summary.notes.append(
            f"{len(unseen)} of {len(topics)} topics are only held out and never trained on ({', '.join(unseen[:5])}"
            f"{' ...' if len(unseen) > 5 else ''}): what the student does there is generalisation."
        )


def _refuse_empty_splits(summary: DataSummary, holdout: float) -> None:
    if summary.train and summary.heldout:
        return
    names = ("bad", "empty", "unsupervised", "long_skipped", "duplicates")
    left_out = {name: number for name, number in asdict(summary).items() if name in names}
    counts = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in left_out.items() if number)
    found = f"of {summary.read} rows{f' ({counts})' if counts else ''}, {summary.train} are for training and "
    first = f" The first complaint: {summary.complaints[0]}" if summary.complaints else ""
    raise DataError(
        f"{found}{summary.heldout} held out (data.holdout is {holdout:g}); both need at least one. Give more rows, or "
        f"change data.holdout.{first}"
    )
