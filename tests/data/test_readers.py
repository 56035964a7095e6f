from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from limbeck.data.readers import count_rows, read_examples, source_files
from limbeck.errors import DataError
from limbeck.recipe import FileSource, StdlibSource

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b.jsonl").write_text('{"text": "b1"}\nbad\n{"text": "b3"}\n')
    (tmp_path / "a.csv").write_text("text\na1\n")
    return tmp_path


def test_skipping_tells_of_each_bad_row(folder: Path) -> None:
    told: list[str] = []
    found = list(read_examples(FileSource(path=str(folder)), bad_rows="skip", on_bad=told.append))
    assert [example.text for example in found] == ["a1", "b1", "b3"]
    assert len(told) == 1 and "b.jsonl:2: the line is not JSON" in told[0]


def test_stopping_names_the_row_and_the_way_out(folder: Path) -> None:
    told: list[str] = []
    reading = read_examples(FileSource(path=str(folder)), bad_rows="stop", on_bad=told.append)
    with pytest.raises(DataError, match=r"b.jsonl:2: the line is not JSON.*data.bad_rows=skip"):
        list(reading)
    assert told == []


def test_a_wrong_column_stops_even_when_rows_are_skipped(folder: Path) -> None:
    with pytest.raises(DataError, match="no column 'body'"):
        list(read_examples(FileSource(path=str(folder / "a.csv"), text="body"), bad_rows="skip", on_bad=print))


def test_counts_and_files(folder: Path) -> None:
    source = FileSource(path=str(folder))
    assert count_rows(source) == 5 and count_rows(StdlibSource()) is None
    assert [file.name for file in source_files(source)] == ["a.csv", "b.jsonl"] and source_files(StdlibSource()) == []
