from __future__ import annotations

import csv
import json
import os
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.data import files
from limbeck.data.columns import Columns
from limbeck.data.files import count_file, find_files, read_file
from limbeck.errors import DataError
from limbeck.text.encode import Example

if TYPE_CHECKING:
    from pathlib import Path

AUTO = Columns()


def read(file: Path, columns: Columns = AUTO) -> tuple[list[Example], list[str]]:
    """The examples of a file, and the complaints with the folder taken off."""
    refused: list[str] = []
    examples = list(read_file(file, columns, refused.append))
    return examples, [message.replace(f"{file.parent}{os.sep}", "") for message in refused]


def texts(examples: list[Example]) -> list[str | None]:
    return [example.text for example in examples]


# ---- finding ---------------------------------------------------------------------------------------------------------


def test_files_folders_and_globs_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.parquet", "sub/d.bin", ".hidden/e.jsonl", ".f.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    names = [file.name for file in find_files(str(tmp_path))]
    assert names == ["a.jsonl", "b.jsonl", "c.parquet"]
    assert [file.name for file in find_files(str(tmp_path / "*.jsonl"))] == ["a.jsonl", "b.jsonl"]
    assert [file.name for file in find_files(str(tmp_path / "**" / "*.parquet"))] == ["c.parquet"]
    assert find_files(str(tmp_path / "b.jsonl")) == [tmp_path / "b.jsonl"]


def test_a_name_with_brackets_is_a_name_first(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_text("")
    assert find_files(str(tmp_path / "a[1].jsonl")) == [tmp_path / "a[1].jsonl"]


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(DataError, match=r"there is no file or folder .*trian.jsonl; .*Beside it are train.jsonl"):
        find_files(str(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match=r"no file matches .*\*.csv; the current folder is"):
        find_files(str(tmp_path / "*.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"the folder .*empty holds no data files; allowed are .jsonl, .parquet, .csv"):
        find_files(str(tmp_path / "empty"))


@pytest.mark.parametrize(("name", "found"), [("a.json", ".json"), ("a", "no"), ("a.jsonl.gz", ".gz")])
def test_wrong_extension(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=f"{found} extension; allowed are .jsonl, .parquet, .csv, .txt and .md"):
        find_files(str(tmp_path / name))


def test_a_folder_of_tables_and_texts_is_not_clear(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("")
    (tmp_path / "README.md").write_text("")
    with pytest.raises(DataError, match=r"both tables and texts \(README.md ...\)"):
        find_files(str(tmp_path))


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read(tmp_path / "gone.jsonl")


# ---- JSON lines ------------------------------------------------------------------------------------------------------


def test_jsonl(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "t\\u00e9"}\n{"text": "last"}')
    examples, refused = read(file)
    assert texts(examples) == ["one", "té", "last"] and refused == []
    assert [example.source for example in examples] == [f"{file}:{number}" for number in (1, 2, 3)]


def test_malformed_lines_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines = [
        b'{"text": "ok"}',
        b"",
        b"{bad",
        b"[1]",
        b'"text"',
        b'{"text": "\xff"}',
        b'{"body": 1}',
        b'{"text": 5}',
        b'{"text": "\\ud800"}',
        b'{"a":' * 100_000,
        b'{"text": "end"}',
        b"",
        b"  ",
    ]
    file.write_bytes(b"\n".join(lines))
    examples, refused = read(file)
    assert texts(examples) == ["ok", "end"]
    expected = [
        "2: the line is empty",
        "3: the line is not JSON",
        "4: the line holds a JSON list",
        "5: the line holds a ",
    ]
    expected += ["6: the line is not valid UTF-8 (byte 11)", "7: none of its columns", "8: column 'text' holds int"]
    expected += ["9: column 'text' is not valid text", "10: the line is not JSON"]
    assert len(refused) == len(expected)
    assert all(message.startswith(f"a.jsonl:{start}") for message, start in zip(refused, expected, strict=True))


def test_rows_without_a_named_column(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"body": "a"}\n{"text": "b"}\n')
    examples, refused = read(file, Columns(text="body"))
    assert texts(examples) == ["a"]
    assert refused == ["a.jsonl:2: there is no column 'body'; available are text."]


def test_huge_lines_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ROW_BYTES", 100)
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join([json.dumps({"text": text}) for text in ("a", "x" * 950, "b" * 50, "y" * 5000)]))
    examples, refused = read(file)
    assert texts(examples) == ["a", "b" * 50]
    assert refused == [f"a.jsonl:{number}: the line is longer than 100 bytes." for number in (2, 4)]


@pytest.mark.parametrize("content", ["", "\n", "\n \n"])
def test_empty_jsonl(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    assert read(tmp_path / "a.jsonl") == ([], ["a.jsonl: the file is empty."])


# ---- CSV -------------------------------------------------------------------------------------------------------------


def test_csv_rows_are_numbered_by_their_first_line(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    with file.open("w", newline="", encoding="utf-8-sig") as handle:
        csv.writer(handle).writerows([["text", "kind"], ["one\ntwo", "x"], [], ["thréé, four", "y"]])
    examples, refused = read(file, Columns(text="text", topic="kind"))
    assert texts(examples) == ["one\ntwo", "thréé, four"] and refused == []
    assert [example.topic for example in examples] == ["x", "y"]
    assert [example.source for example in examples] == [f"{file}:2", f"{file}:5"]


def test_malformed_csv_rows(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b'prompt,completion\na,b\nonly one\na,b,c\n\xff,b\n"a"x,b\nc,d\n"never closed,x\n')
    examples, refused = read(file)
    assert [(example.prompt, example.completion) for example in examples] == [("a", "b"), ("c", "d")]
    assert refused == [
        "a.csv:3: the row has 1 fields; the header has 2.",
        "a.csv:4: the row has 3 fields; the header has 2.",
        "a.csv:5: column 'prompt' is not valid UTF-8.",
        "a.csv:6: the row is not CSV: ',' expected after '\"'.",
        "a.csv:8: the row is not CSV: unexpected end of data.",
    ]


def test_csv_without_rows_or_columns(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("")
    assert read(file)[1] == ["a.csv: the file is empty."]
    file.write_text("text\n")
    assert read(file)[1] == ["a.csv: the file has a header and no rows."]
    file.write_text("title,body\na,b\n")
    with pytest.raises(DataError, match="none of its columns is recognised .* available are title, body"):
        read(file)
    file.write_text("text,text\na,b\n")
    with pytest.raises(DataError, match="the column 'text' twice"):
        read(file)


def test_long_csv_fields_are_read_and_the_limit_is_put_back(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(f"text\n{'x' * 200_000}\n")
    before = csv.field_size_limit()
    assert texts(read(file)[0]) == ["x" * 200_000]
    assert csv.field_size_limit() == before


# ---- Parquet ---------------------------------------------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def test_parquet(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(200)], "other": range(200)}), file, row_group_size=64)
    examples, refused = read(file)
    assert texts(examples) == [f"row {i}" for i in range(200)] and refused == []
    assert examples[150].source == f"{file}:151"
    assert count_file(file) == 200


def test_parquet_of_messages(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"messages": [MESSAGES, None, MESSAGES[:1]]}), file)
    assert [example.messages for example in read(file)[0]] == [MESSAGES, [], MESSAGES[:1]]


def test_parquet_values_of_the_wrong_type(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array([b"a", b"\xff"], pa.binary())}), file)
    assert read(file) == ([], [f"a.parquet:{i}: column 'text' holds bytes; it must hold text." for i in (1, 2)])
    bad = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff"))
    pq.write_table(pa.table({"text": bad}), file)
    examples, refused = read(file)
    assert texts(examples) == ["a"] and refused == ["a.parquet:2: the row is not valid UTF-8."]


def test_damaged_parquet(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    table = pa.table({"text": [f"some text {i * 7919}" for i in range(2000)]})
    pq.write_table(table, file, write_page_checksum=True, use_dictionary=False, compression="none")
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 4] ^= 1
    file.write_bytes(whole)
    with pytest.raises(DataError, match=r"a.parquet: damaged behind row 0: .*[Cc][Rr][Cc]"):
        read(file)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="a.parquet: cannot be read as Parquet"):
        read(file)
    file.write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read(file)


def test_empty_parquet(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), file)
    assert read(file) == ([], ["a.parquet: the file has no rows."])
    with pytest.raises(DataError, match="there is no column 'body'; available are text"):
        read(file, Columns(text="body"))


def test_a_small_file_that_unpacks_to_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"text": ["x" * 100_000] * 640}), file)
    assert file.stat().st_size < 50_000
    monkeypatch.setattr(files, "BATCH_BYTES", 2**20)
    with pytest.raises(DataError, match=r"bomb.parquet: the rows 1 to 64 unpack to 6,400,\d+ bytes; at most 1,048,576"):
        read(file)


# ---- plain text ------------------------------------------------------------------------------------------------------


def test_text_files_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffHé\nllo\n".encode())
    assert read(file) == ([Example(text="Hé\nllo\n", source=str(file))], [])
    file.write_bytes(b"ab\xff")
    assert read(file) == ([], ["a.txt: the file is not valid UTF-8 (byte 3)."])
    monkeypatch.setattr(files, "ROW_BYTES", 2)
    assert read(file)[1] == ["a.txt: the file has 3 bytes and is one row; at most 2 are allowed. Split it."]
    with pytest.raises(DataError, match="is plain text and has no column 'body'"):
        read(file, Columns(text="body"))


@pytest.mark.parametrize(
    ("name", "content", "rows"), [("a.jsonl", "{}\n{}\n", 2), ("a.csv", "h\n1\n", 2), ("a.md", "", 1)]
)
def test_count(tmp_path: Path, name: str, content: str, rows: int) -> None:
    (tmp_path / name).write_text(content)
    assert count_file(tmp_path / name) == rows


def test_every_extension_has_a_reader() -> None:
    table: dict[str, Any] = files.READERS
    assert list(table) == [".jsonl", ".parquet", ".csv", ".txt", ".md"]
