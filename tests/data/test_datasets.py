from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from limbeck.data.datasets import read_dataset
from limbeck.data.readers import count_rows, source_files
from limbeck.errors import DataError, MissingExtra
from limbeck.recipe import DatasetSource
from tests import tiny

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    datasets: Any = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    tiny.write_jsonl(tmp_path / "set" / "train.jsonl", tiny.rows(5))
    return tmp_path / "set"


def refuse(message: str) -> None:
    raise AssertionError(message)


def test_a_local_folder(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = DatasetSource(path=str(folder), topic="topic")
    found = list(read_dataset(source, refuse))
    assert [(example.text, example.topic) for example in found] == [(row["text"], row["topic"]) for row in tiny.rows(5)]
    assert found[2].source == f"{folder}[train]:3"
    assert count_rows(source) == 5 and source_files(source) == [folder / "train.jsonl"]
    assert capfd.readouterr() == ("", "")


def test_conversations(folder: Path) -> None:
    chats = tiny.chats(4)
    tiny.write_jsonl(folder / "train.jsonl", chats)
    found = list(read_dataset(DatasetSource(path=str(folder)), refuse))
    assert [example.messages for example in found] == [chat["messages"] for chat in chats]


def test_rows_of_the_wrong_type(folder: Path) -> None:
    tiny.write_jsonl(folder / "train.jsonl", [{"text": 1}, {"text": 2}])  # type: ignore[list-item]
    refused: list[str] = []
    assert list(read_dataset(DatasetSource(path=str(folder)), refused.append)) == []
    assert refused == [f"{folder}[train]:{i}: column 'text' holds int; it must hold text." for i in (1, 2)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "nope"}, r"the split 'nope' of the dataset .*cannot be loaded"),
        ({"text": "body"}, r"there is no column 'body'; available are text, topic"),
        ({"path": "nobody/nothing-here"}, r"the dataset nobody/nothing-here cannot be loaded: .*Look at data.source"),
    ],
)
def test_what_cannot_be_loaded(folder: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_dataset(DatasetSource(**{"path": str(folder), **changes}), refuse))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"reading the dataset 'a/b' needs .*limbeck\[datasets\]"):
        list(read_dataset(DatasetSource(path="a/b"), refuse))
