from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck.data import read_rows, row_id, split_of
from limbeck.data.build import DataSummary, data_fingerprint, run_data
from limbeck.errors import DataError, EmptyRow, LongRow, RecipeError, TeacherError, UnsupervisedRow
from limbeck.system.rundir import RunDir
from limbeck.system.sealed import read_json
from tests import tiny
from tests.recipes import tiny_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from limbeck.recipe import Recipe
    from limbeck.types import Progress, Row

TOKENIZER = tiny.build_tokenizer()


class Case:
    """A data stage on a file of JSON lines."""

    def __init__(self, folder: Path) -> None:
        self.file, self.run = folder / "rows.jsonl", RunDir(folder / "run")
        self.told: list[Progress] = []

    def recipe(self, *overrides: str) -> Recipe:
        source = f"data.source={{kind: files, path: {self.file}}}"
        return tiny_recipe(source, "data.holdout=0.3", *overrides)

    def make(self, lines: list[Any], *overrides: str, max_context: int | None = None) -> DataSummary:
        text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        self.file.write_text("\n".join(text) + "\n")
        recipe = self.recipe(*overrides)
        return run_data(recipe, self.run, TOKENIZER, max_context=max_context, on_progress=self.told.append)

    @property
    def rows(self) -> list[Row]:
        return read_rows(self.run.path / "data" / "rows.parquet")

    @property
    def summary(self) -> dict[str, Any]:
        return read_json(self.run.path / "data" / "summary.json", "")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_rows_and_summary(case: Case) -> None:
    texts = tiny.rows(40)
    found = case.make(texts, "data.source.topic=topic")  # type: ignore[arg-type]
    rows = case.rows
    assert {row.text for row in rows} == {line["text"] for line in texts}
    assert all(row.id == row_id(row.text) for row in rows)
    assert [row.split for row in rows] == sorted((row.split for row in rows), reverse=True)
    assert found.read == 40 and found.train + found.heldout == 40 and min(found.train, found.heldout) > 0
    assert found.tokens == sum(len(row.ids) for row in rows)
    assert found.supervised == sum(row.num_supervised for row in rows) == found.tokens - 40
    assert sum(count["train"] for count in found.topics.values()) == found.train and set(found.topics) == set(
        tiny.TOPICS
    )
    assert case.summary == found.__dict__ and found.complaints == [] and found.notes == []
    assert [row.source for row in rows if row.split == "train"] == sorted(
        (row.source for row in rows if row.split == "train"), key=lambda source: int(source.split(":")[-1])
    )


def test_progress_ends_complete(case: Case) -> None:
    case.make(tiny.rows(30))  # type: ignore[arg-type]
    last = case.told[-1]
    assert (last.stage, last.done, last.total, last.unit) == ("data", 30, 30, "rows") and last.rate > 0


def test_unusable_rows_are_counted_by_kind(case: Case) -> None:
    lines = [
        *tiny.rows(30),
        tiny.rows(30)[3],
        "{bad",
        {"text": 7},
        {"text": " "},
        {"prompt": "No reply?"},
        {"prompt": "A" * 300, "completion": "Yes."},
        {"text": "The rain left. " * 30},
        {"messages": [{"role": "user", "content": "Hm?"}]},
    ]
    found = case.make(lines, "data.bad_rows=skip", "data.max_length=50", "data.long_rows=truncate")
    assert (found.read, found.duplicates, found.bad, found.empty) == (38, 1, 3, 1)
    assert (found.unsupervised, found.long_skipped) == (2, 0) and found.truncated > 0
    assert sum(found.available.values()) == 31
    assert len(found.complaints) == 6 and "rows.jsonl:32: the line is not JSON" in found.complaints[0]


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("{bad", DataError, r"rows.jsonl:31: the line is not JSON.*data.bad_rows=skip"),
        ({"text": ""}, EmptyRow, r"rows.jsonl:31: the text is empty"),
        ({"prompt": "No reply?"}, DataError, r"rows.jsonl:31: .* no completion"),
        ({"prompt": "A" * 300, "completion": "b"}, UnsupervisedRow, r"rows.jsonl:31: no token .*data.max_length"),
    ],
)
def test_the_stage_stops_at_the_row(case: Case, line: Any, error: type[DataError], message: str) -> None:
    with pytest.raises(error, match=message):
        case.make([*tiny.rows(30), line], "data.max_length=64")
    assert not (case.run.path / "data").exists()


def test_long_rows_by_policy(case: Case) -> None:
    lines = [*tiny.rows(30), {"text": "The rain left. " * 30}]
    with pytest.raises(LongRow, match="rows.jsonl:31: the row has .* tokens; allowed are 100"):
        case.make(lines, "data.long_rows=stop", "data.max_length=100")
    found = case.make(lines, "data.long_rows=skip", "data.max_length=100")
    assert found.long_skipped == 1 and sum(found.available.values()) == 30
    found = case.make(lines, "data.long_rows=truncate", "data.max_length=100")
    assert found.truncated == 1 and max(len(row.ids) for row in case.rows) == 100


def test_the_teachers_context_is_a_limit_too(case: Case) -> None:
    case.make(tiny.rows(30), "data.max_length=512", max_context=20)  # type: ignore[arg-type]
    assert max(len(row.ids) for row in case.rows) == 20


def test_rows_that_are_equal_once_cut_are_duplicates(case: Case) -> None:
    beginning = "The rain covered the old bridge. " * 3
    lines = [*tiny.rows(30), {"text": beginning + "One."}, {"text": beginning + "Two."}]
    found = case.make(lines, "data.max_length=30")
    assert found.duplicates == 1
    tokens = [row.ids.tobytes() for row in case.rows]
    assert len(set(tokens)) == len(tokens)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text("abcdé \n", min_size=1, max_size=4).filter(str.strip), min_size=4, max_size=60),
    st.integers(1, 30),
    st.integers(0, 3),
)
def test_held_out_rows_are_never_trained_on(case: Case, texts: list[str], limit: int, seed: int) -> None:
    lines = [{"text": text} for text in texts]
    overrides = ("data.holdout=0.5", f"data.limit={limit}", f"data.limit_heldout={limit}", f"seed={seed}")
    splits = {split_of(row_id(text), 0.5) for text in texts}
    if len(splits) < 2:
        with pytest.raises(DataError, match="both need at least one"):
            case.make(lines, *overrides)
        return
    found = case.make(lines, *overrides)
    rows = case.rows
    train = {row.text for row in rows if row.split == "train"}
    held = {row.text for row in rows if row.split == "heldout"}
    assert not train & held and len(train) + len(held) == len(rows)
    assert max(len(train), len(held)) <= limit
    assert found.duplicates == len(texts) - len(set(texts))
    case.make(lines[::-1] + lines, *overrides)
    assert {(row.id, row.split) for row in rows} == {(row.id, row.split) for row in case.rows}


def test_without_rows_on_either_side(case: Case) -> None:
    with pytest.raises(DataError, match=r"of 2 rows \(1 duplicates\).*data.holdout is 0.3.*both need at least one"):
        case.make([{"text": "only"}, {"text": "only"}])
    with pytest.raises(DataError, match=r"of 2 rows \(2 bad\).*The first complaint: .*rows.jsonl:1: the line is not"):
        case.make(["{", "["], "data.bad_rows=skip")


def test_topics_that_are_only_held_out_are_noted(case: Case) -> None:
    texts = [f"row {number}" for number in range(40)]
    held = next(text for text in texts if int(row_id(text), 16) < 0.3 * 2**64)
    lines = [{"text": text, "kind": "rare" if text == held else "common"} for text in texts]
    (note,) = case.make(lines, "data.source.topic=kind").notes
    assert note.startswith("1 of 2 topics are only held out and never trained on ('rare')")


def test_conversations_and_prompts(case: Case) -> None:
    chats = tiny.chats(30)
    found = case.make(chats)
    assert found.supervised < found.tokens and all(row.spans for row in case.rows)
    generate = "trace.mode={kind: generate, max_tokens: 20}"
    found = case.make(chats, generate, max_context=128)
    assert found.supervised == 0 and all(row.spans == () for row in case.rows)
    assert all(row.text.endswith("<|im_start|>assistant\n") for row in case.rows)
    texts = case.make(tiny.rows(30), generate)  # type: ignore[arg-type]
    assert texts.train and all(row.ids[-1] != 2 for row in case.rows)
    with pytest.raises(LongRow, match="cannot be cut"):
        case.make(chats, generate, max_context=30)
    with pytest.raises(RecipeError, match=r"max_tokens is 20, and the teacher's context has 20"):
        case.make(chats, generate, max_context=20)


def test_a_missing_template_stops_even_when_bad_rows_are_skipped(case: Case) -> None:
    tiny.write_jsonl(case.file, tiny.chats(5))
    bare = tiny.build_tokenizer(chat_template=None)
    with pytest.raises(TeacherError, match="no chat template"):
        run_data(case.recipe("data.bad_rows=skip"), case.run, bare, max_context=None, on_progress=case.told.append)


def test_the_same_inputs_make_the_same_bytes(case: Case) -> None:
    case.make(tiny.rows(40), "data.limit=10")  # type: ignore[arg-type]
    file = case.run.path / "data" / "rows.parquet"
    first = file.read_bytes()
    case.make(tiny.rows(40), "data.limit=10")  # type: ignore[arg-type]
    assert file.read_bytes() == first
    case.make(tiny.rows(40), "data.limit=10", "seed=1")  # type: ignore[arg-type]
    assert file.read_bytes() != first


def test_fingerprint_follows_section_files_and_mode(case: Case) -> None:
    tiny.write_jsonl(case.file, tiny.rows(3))
    before = json.dumps(data_fingerprint(case.recipe()))
    assert before == json.dumps(data_fingerprint(case.recipe()))
    changed = [case.recipe("data.max_length=99"), case.recipe("trace.mode.kind=generate")]
    prints = [json.dumps(data_fingerprint(recipe)) for recipe in changed]
    tiny.write_jsonl(case.file, tiny.rows(4))
    prints += [before, json.dumps(data_fingerprint(case.recipe()))]
    assert len(set(prints)) == 4
    assert json.dumps(data_fingerprint(tiny_recipe()))
    case.file.unlink()
    with pytest.raises(DataError, match="there is no file"):
        data_fingerprint(case.recipe())


@pytest.mark.slow
def test_the_standard_library(case: Case) -> None:
    recipe = tiny_recipe("data.limit=40", "data.limit_heldout=10", "data.max_length=64")
    found = run_data(recipe, case.run, TOKENIZER, max_context=None, on_progress=case.told.append)
    assert (found.train, found.heldout) == (40, 10) and found.available["train"] > 2000 and found.truncated > 0
    assert case.told[-1].total == found.read and len({row.topic for row in case.rows}) > 5
    assert all(isinstance(row.ids, np.ndarray) and row.ids.max() < tiny.VOCAB for row in case.rows)
