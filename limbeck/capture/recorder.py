"""The recorder, a process of its own: reads exchanges from its standard input, redacts and writes them, and tells on
its standard output what became of them, a line of JSON at a time. It ends when its input does.

A process, because a regular expression holds the interpreter while it runs, and a prompt of a megabyte would hold up
everybody's tokens.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.capture.assemble import CUT
from limbeck.capture.exchange import Frame, record_of, take
from limbeck.errors import CaptureError, RunDirError
from limbeck.system.jsonl import LineFile, compact_line
from limbeck.system.lock import try_lock
from limbeck.system.sealed import seal
from limbeck.system.signals import stop_signals
from limbeck.text.redact import Redactor, make_redactor

READ_BYTES = 2**20
SYNC_SECONDS = 1.0
"""Longest time that a line may be written and not durable."""

TELL_SECONDS = 0.25

IDLE_SECONDS = 0.1
"""When nothing comes for so long, what was written is made durable at once."""

LOCK_SECONDS = 1.0
"""How long a predecessor, whose proxy was killed, may take to write what it has."""


@dataclass
class State:
    """`counts` are since they were last told; of `unsynced` lines, `unsynced_cut` are cut answers."""

    settings: dict[str, Any]
    redactor: Redactor
    journal: SegmentWriter | None = None
    counts: Counter[str] = field(default_factory=Counter)
    unsynced: int = 0
    unsynced_cut: int = 0
    trouble: str = ""
    closed_until: float = 0.0
    synced_at: float = 0.0
    told_at: float = 0.0


def main() -> None:
    """Runs until its input ends. Signals to stop are for the proxy: what it has sent is still written."""
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)
    buffer = bytearray()
    state: State | None = None
    while (data := _read(state)) is not None:
        buffer += data
        for frame in take(buffer):
            if state is None:
                state = _start(frame.meta)
                if state is None:
                    return
            else:
                _record(state, frame)
        if state is not None:
            _settle(state, idle=not data)
    if state is not None:
        _sync(state)
        _tell(state)
        if state.journal is not None:
            state.journal.close()


def _read(state: State | None) -> bytes | None:
    """What has come; b"" when nothing did for a while and there is something to settle; None at the end."""
    pending = state is not None and (state.unsynced or state.counts)
    ready, _, _ = select.select([0], [], [], IDLE_SECONDS if pending else None)
    return (os.read(0, READ_BYTES) or None) if ready else b""


def _start(settings: dict[str, Any]) -> State | None:
    """Open the store; None when it cannot be, which is told."""
    state = State(settings, make_redactor(settings["redact"]))
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            state.journal = SegmentWriter(Path(settings["store"]), settings["segment_bytes"])
            break
        except RunDirError as error:
            if time.monotonic() > end:
                return _say({"refused": str(error), "in_use": True})
            time.sleep(0.05)
        except OSError as error:
            reason = f"the store {settings['store']} cannot be written: {error.strerror}. Choose another folder."
            return _say({"refused": reason, "in_use": False})
    _say({"ready": True})
    return state


def _say(told: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # the proxy was killed; what it has sent is still written
        os.write(1, json.dumps(told).encode() + b"\n")


def _record(state: State, frame: Frame) -> None:
    try:
        record = record_of(frame, state.redactor, state.settings["tags"])
        line = seal(compact_line(record)) + b"\n"
    except (CaptureError, TypeError, ValueError, LookupError, AttributeError, RecursionError):
        # All but the first: the answer has the shape of a completion on the outside and another one within.
        state.counts["unreadable"] += 1
        return
    journal = _journal(state)
    if journal is None:
        state.counts["failed"] += 1
        return
    limit = state.settings["max_bytes"]
    if limit is not None and journal.num_bytes + len(line) > limit:
        state.counts["full"] += 1
        state.trouble = f"the store has reached its limit of {limit} bytes; nothing more is recorded."
        return
    try:
        journal.append(line)
    except OSError as error:
        state.counts["failed"] += 1
        _fail(state, error)
        return
    state.unsynced += 1
    state.unsynced_cut += CUT in record["finish_reasons"]


def _journal(state: State) -> SegmentWriter | None:
    """The store, opened anew when a while has passed since it failed."""
    if state.journal is None and time.monotonic() >= state.closed_until:
        try:
            state.journal = SegmentWriter(Path(state.settings["store"]), state.settings["segment_bytes"])
            state.trouble = ""
        except (OSError, RunDirError) as error:
            _fail(state, error)
    return state.journal


def _fail(state: State, error: Exception) -> None:
    """Lines that were not yet durable count as failed: some may be there, none is promised."""
    reason = (error.strerror or "") if isinstance(error, OSError) else str(error)
    state.trouble = f"the store cannot be written ({reason}); traffic goes on without being recorded."
    state.counts["failed"] += state.unsynced
    state.unsynced = state.unsynced_cut = 0
    state.closed_until = time.monotonic() + state.settings["retry_seconds"]
    if state.journal is not None:
        state.journal.close()
        state.journal = None


def _sync(state: State) -> None:
    if state.journal is None or not state.unsynced:
        return
    try:
        state.journal.sync()
    except OSError as error:
        _fail(state, error)
        return
    state.counts["recorded"] += state.unsynced
    state.counts["cut"] += state.unsynced_cut
    state.unsynced = state.unsynced_cut = 0
    state.synced_at = time.monotonic()


def _settle(state: State, *, idle: bool) -> None:
    now = time.monotonic()
    if idle or now - state.synced_at >= SYNC_SECONDS:
        _sync(state)
    if state.counts and (idle or now - state.told_at >= TELL_SECONDS):
        state.told_at = now
        _tell(state)


def _tell(state: State) -> None:
    _say({**state.counts, "trouble": state.trouble})
    state.counts.clear()


SEGMENT = re.compile(r"capture-(\d{5,})\.jsonl")


class SegmentWriter:
    """An open store. Every method that writes raises OSError; after that the journal must be closed and made anew."""

    def __init__(self, folder: Path, segment_bytes: int) -> None:
        """Make the folder, lock it. Raises RunDirError when another recorder holds it, OSError."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder, self._segment_bytes = folder, segment_bytes
        self._segment: LineFile | None = None
        lock = try_lock(folder / ".lock", mode=0o600)
        if lock is None:
            raise RunDirError(
                f"the store {folder} is in use by another capture. Stop it, or give this one a folder of its own."
            )
        self._lock = lock
        self.num_bytes = sum(file.stat().st_size for file in segments(folder))

    def append(self, line: bytes) -> None:
        """Write a line; it is durable after the next `sync`."""
        if self._segment is None or self._segment.size + len(line) > self._segment_bytes:
            self._open_next()
        assert self._segment is not None
        self._segment.append(line)
        self.num_bytes += len(line)

    def _open_next(self) -> None:
        self.sync()
        if self._segment is not None:
            self._segment.close()
            self._segment = None
        numbers = [int(SEGMENT.fullmatch(file.name)[1]) for file in segments(self._folder)]  # type: ignore[index]
        path = self._folder / f"capture-{max(numbers, default=-1) + 1:05d}.jsonl"
        self._segment = LineFile.open(path, mode=0o600, new=True)

    def sync(self) -> None:
        """Make everything durable. Raises FileNotFoundError when the segment is no longer where it was written: a
        deleted file takes writes without complaint."""
        if self._segment is None:
            return
        self._segment.sync()
        if not os.path.samestat(os.fstat(self._segment.fd), os.stat(self._segment.path)):
            raise FileNotFoundError(2, "the store's file was replaced", str(self._segment.path))

    def close(self) -> None:
        self._lock.release()
        if self._segment is not None:
            with contextlib.suppress(OSError):
                self._segment.close()
        self._segment = None


def segments(folder: Path) -> list[Path]:
    """The segments of a store, oldest first."""
    found = [(int(match[1]), file) for file in folder.iterdir() if (match := SEGMENT.fullmatch(file.name))]
    return [file for _, file in sorted(found)]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit("This is run by `limbeck capture`.")
    main()
