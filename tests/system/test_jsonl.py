import errno
import os
import resource
import signal
import subprocess
import sys

import pytest

from limbeck.errors import BudgetError
from limbeck.system.jsonl import (
    LineFile,
    append_durably,
    checked_line,
    json_line,
    read_checked,
    read_values,
    whole_lines,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lines.jsonl"


def append(path, *values):
    append_durably(path, b"".join(map(json_line, values)))


def test_lines_come_back_in_their_order_with_their_places(path):
    append(path, {"a": "ü"}, [1, 2])
    append(path, 3)
    whole = path.read_bytes()
    assert list(read_values(path)) == [{"a": "ü"}, [1, 2], 3]
    for offset, line in whole_lines(path):
        assert whole[offset:].startswith(line) and line.endswith(b"\n")


def test_no_file_holds_no_values(path):
    assert not list(read_values(path))


@pytest.mark.parametrize("longest_line", [10, 70_000])
def test_half_a_last_line_is_passed_over_and_taken_away(path, longest_line):
    """Also where it is longer than what is read at once to find its beginning."""
    append(path, "x" * longest_line, 2)
    whole = path.read_bytes()
    half = whole + b'"' + b"y" * longest_line
    path.write_bytes(half)
    assert list(read_values(path)) == ["x" * longest_line, 2] and path.read_bytes() == half
    append(path, 3)
    assert path.read_bytes() == whole + b"3\n"


def test_a_file_of_half_a_line_alone_becomes_empty(path):
    path.write_bytes(b'{"half')
    LineFile.open(path).close()
    assert path.read_bytes() == b""


def test_reading_ends_before_a_line_that_is_too_long(path):
    append(path, 1, "x" * 100, 2)
    assert [line for _, line in whole_lines(path, 50)] == [b"1\n"]


def test_a_line_that_is_no_json_costs_itself_alone(path):
    path.write_bytes(b"1\nnonsense\n\n\xff\xfe\n2\n")
    assert list(read_values(path)) == [1, 2]


@pytest.mark.parametrize("text", ["\u2028", "\x85", "\r", "\x1c", "a\nb", "\ud800"])
def test_no_character_ends_a_line_early(path, text):
    """Half a character is written as its escape, because UTF-8 has none for it."""
    append(path, {"reason": text}, 2)
    assert list(read_values(path)) == [{"reason": text}, 2]
    assert read_checked(checked_line(text)) == text


def test_a_checked_line_is_not_believed_when_a_bit_of_it_changed():
    line = checked_line({"keys": ["a"], "cost": 0.25})
    assert read_checked(line) == {"keys": ["a"], "cost": 0.25}
    for at in range(len(line)):
        changed = bytearray(line)
        changed[at] ^= 4
        assert read_checked(bytes(changed)) is None


def test_numbers_that_json_does_not_have_are_refused_in_checked_lines():
    with pytest.raises(ValueError, match="not JSON compliant"):
        checked_line(float("nan"))


def test_a_new_file_is_refused_where_one_is(path):
    path.write_bytes(b"1\n")
    with pytest.raises(FileExistsError):
        LineFile.open(path, new=True)
    assert path.read_bytes() == b"1\n"


def test_a_write_that_stops_half_way_leaves_no_half_line(path, monkeypatch):
    append(path, 1)
    file, write, calls = LineFile.open(path), os.write, []

    def short(fd, data):
        calls.append(len(data))
        if len(calls) == 3:
            raise OSError(errno.EIO, "Input/output error")
        return write(fd, data[:2])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        with pytest.raises(OSError, match="Input/output"):
            file.append(b'"a long line"\n')
    assert len(calls) == 3 and path.read_bytes() == b"1\n" and file.size == 2
    file.append(b"2\n")
    file.close()
    assert list(read_values(path)) == [1, 2]


def test_a_full_disk_is_told_and_keeps_what_was_written(path):
    append(path, "before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 4, before[0][1]))
    try:
        with pytest.raises(BudgetError, match="disk is full"):
            append(path, "x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
        signal.signal(signal.SIGXFSZ, before[1])
    assert path.read_bytes() == b'"before"\n'


def test_lines_are_on_the_disk_before_the_call_returns(path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    append(path, 1)
    assert synced == [str(path.parent), str(path)]  # the name first: a file without one is lost


def test_a_killed_writer_loses_no_whole_line(path):
    code = (
        "import itertools, sys; from pathlib import Path; from limbeck.system.jsonl import *\n"
        f"file = LineFile.open(Path({str(path)!r}))\n"
        "for n in itertools.count():\n"
        "    file.append(json_line([n, 'x' * 5000]))\n"
        "    print(n, flush=True)\n"
    )
    for _ in range(2):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            said = [writer.stdout.readline() for _ in range(20)]
            writer.kill()
        found = [value[0] for value in read_values(path)]
        written = path.read_bytes()
        path.write_bytes(
            written[: written.rindex(b"\n") - 2]
        )  # its last whole line is torn; the kill may have torn one more
        assert found[:20] == [int(line) for line in said] == list(range(20))
        assert len(list(read_values(path))) == len(found) - 1
        LineFile.open(path).close()
        assert path.read_bytes().endswith(b"\n")
        path.unlink()
