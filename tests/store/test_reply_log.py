import os
import resource
import signal

import pytest

from limbeck.errors import BudgetError, StoreError
from limbeck.store.reply_log import ReplyLog


def entry(number: int, **more) -> dict:
    return {"keys": [f"k{number}"], "cost": 0.25, "answer": {"text": f"réponse {number}\n"}, **more}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def opened(path, *, keep=lambda entry: True) -> ReplyLog:
    return ReplyLog.open(path, keep)


def filled(path, count: int) -> list[dict]:
    journal, entries = opened(path), [entry(number) for number in range(count)]
    for one in entries:
        journal.append(one)
    assert journal.sync() == count
    journal.close()
    return entries


def test_what_was_written_is_read(path):
    entries = filled(path, 5)
    journal = opened(path)
    assert [journal.read(f"k{number}") for number in range(5)] == entries
    assert "k4" in journal and "k5" not in journal
    assert path.stat().st_mode & 0o077 == 0  # replies may be private


def test_one_line_has_many_keys(path):
    journal = opened(path)
    journal.append({"keys": ["a", "b"], "answer": 1})
    assert journal.read("a") == journal.read("b") == {"keys": ["a", "b"], "answer": 1}


def test_half_a_last_line_is_taken_away_wherever_it_was_cut(path):
    entries = filled(path, 3)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        journal = opened(path)
        assert "k2" not in journal and "k1" in journal and not journal.damaged
        journal.append(entries[2])
        journal.close()
        assert path.read_bytes() == whole


def test_any_flipped_bit_is_found_and_costs_its_line_only(path):
    filled(path, 3)
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    end = whole.index(b"\n", start)
    for at in range(start, end):
        for bit in (0, 3, 7):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            journal = opened(path)
            # A byte that became a newline makes two lines of one.
            assert journal.damaged in ([2], [2, 3]) and "k0" in journal and "k1" not in journal and "k2" in journal
            journal.close()


def test_another_file_is_refused(path):
    path.write_text("dear diary\n")
    with pytest.raises(StoreError, match="no journal"):
        opened(path)


def test_the_later_of_two_entries_counts(path):
    journal = opened(path)
    journal.append(entry(1, answer="first"))
    journal.append(entry(1, answer="second"))
    assert journal.read("k1")["answer"] == "second"
    journal.close()
    assert opened(path).read("k1")["answer"] == "second"


def test_only_wanted_places_are_kept_and_they_can_be_forgotten(path):
    filled(path, 4)
    journal = opened(path, keep=lambda entry: entry["keys"] != ["k0"])
    assert "k0" not in journal and "k1" in journal
    journal.forget(["k1", "k9"])
    assert "k1" not in journal and "k2" in journal


def test_one_fsync_serves_all_lines_of_a_moment(path, monkeypatch):
    calls = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(fd), fsync(fd))[1])
    journal = opened(path)
    calls.clear()
    for number in range(100):
        journal.append(entry(number))
    assert journal.synced == 0 and not calls
    assert journal.sync() == journal.sync() == 100
    assert len(calls) == 1


def test_a_disk_that_does_not_confirm_stops(path, monkeypatch):
    journal = opened(path)
    journal.append(entry(0))
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(StoreError, match="does not confirm"):
        journal.sync()
    assert journal.synced == 0


def test_a_full_disk_keeps_what_was_written(path):
    filled(path, 2)
    whole = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole + 30, before[0][1]))
    try:
        journal = opened(path)
        with pytest.raises(BudgetError, match="disk is full"):
            journal.append(entry(2))
        assert path.stat().st_size == whole  # half a line is taken back
        with pytest.raises(BudgetError, match="disk is full"):
            journal.append(entry(3))
        journal.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
        signal.signal(signal.SIGXFSZ, before[1])
    journal = opened(path)
    assert "k1" in journal and "k2" not in journal and path.stat().st_size == whole


def test_the_file_is_read_when_it_is_opened_and_never_again(path, monkeypatch):
    entries = filled(path, 3)
    journal = opened(path)
    path.write_bytes(b"")  # whoever reads it now finds nothing
    monkeypatch.setattr(os, "pread", None)
    journal.append(entry(3))
    assert [journal.read(f"k{number}") for number in range(4)] == [*entries, entry(3)]


def test_memory_is_bounded_and_what_goes_beyond_is_read_again(path, monkeypatch):
    """Room for two lines: the third is read from the file. What is forgotten makes room."""
    entries = filled(path, 3)
    line = path.stat().st_size // 3
    reads, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: (reads.append(at), pread(fd, size, at))[1])
    journal = ReplyLog.open(path, lambda entry: True, 2 * line)
    assert [journal.read(f"k{number}") for number in range(3)] == entries and reads == [2 * line]
    journal.forget(["k0", "k9"])
    journal.append(entry(3))
    assert journal.read("k3") == entry(3) and len(reads) == 1
    journal.forget(["k1", "k2", "k3"])
    assert journal.room == 2 * line


def test_a_line_that_is_read_again_and_was_changed_is_not_believed(path):
    filled(path, 1)
    journal = ReplyLog.open(path, lambda entry: True, 0)
    whole = bytearray(path.read_bytes())
    whole[40] ^= 1
    path.write_bytes(whole)
    with pytest.raises(StoreError, match="was changed"):
        journal.read("k0")
