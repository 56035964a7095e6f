"""A small recipe with a teacher behind an endpoint, rows to ask, and a sitting that kills itself at a chosen moment."""

import hashlib
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

from limbeck.data import row_id
from limbeck.endpoint import rate_limit
from limbeck.errors import Stopped
from limbeck.label.remote import run_ask
from limbeck.label.replies import keep_text
from limbeck.recipe import Recipe
from limbeck.store import TraceStore
from limbeck.store import reply_log as journals
from limbeck.system.jsonl import checked_line
from limbeck.system.signals import stop_requests
from limbeck.text.encode import Encoder, Example
from limbeck.types import Callbacks, Row
from tests import tiny
from tests.pipeline.killed import CONTEXT
from tests.recipes import tiny_recipe

KEY = "sk-canary-7Hq2LmX9dF"
NOT_THE_STORE = {"journal.jsonl", "asked.json"}
"""What depends on the order and the number of attempts; everything else may not."""


def recipe_of(url: str, *overrides: str) -> Recipe:
    teacher = [f"teacher.base_url={url}", "teacher.model=stub-1", "teacher.concurrency=8", "teacher.timeout_seconds=2"]
    trace = ["trace.mode.kind=generate", "trace.mode.max_tokens=8", "trace.target.kind=text", "trace.shard_tokens=300"]
    return tiny_recipe("teacher.kind=openai", *teacher, *trace, *overrides)


def rows_of(tokenizer: Any, count: int = 40) -> list[Row]:
    encoder = Encoder(tokenizer, max_length=64, need_reply=False)
    rows = []
    for number in range(count):
        example = Example(prompt=f"name bird {number}", source=f"birds.jsonl:{number}")
        made = encoder.encode(example)
        split = "heldout" if number % 4 == 0 else "train"
        id, asked = row_id(made.text), encoder.asked(example)
        rows.append(Row(id, split, "birds", made.text, made.ids, (), example.source, asked))
    return rows


def ask(
    recipe: Recipe, path: Path, tokenizer: Any, rows: list[Row], *, messages: list[str] | None = None, **watch: Any
) -> TraceStore:
    said = [] if messages is None else messages
    watch = {"on_progress": lambda progress: None, "on_message": said.append, "stop_asked": lambda: False, **watch}
    return run_ask(recipe, path, keep_text(recipe, tokenizer), rows, Callbacks(**watch))


def files_of(path: Path) -> dict[str, str]:
    """What must not depend on interruptions: every file of the store, byte for byte."""
    files = sorted(file for file in path.iterdir() if file.name not in NOT_THE_STORE)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def journal_of(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    journals.ReplyLog.open(path / "journal.jsonl", lambda entry: bool(found.append(entry))).close()
    return found


def failed_of(path: Path) -> list[dict[str, Any]]:
    file = path / "failed.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


# ---- killed ----------------------------------------------------------------------------------------------------------


def ask_until_killed(
    recipe: Recipe, path: Path, *, at: str = "", count: int = 1, delay: float = 0.0, by: int = signal.SIGKILL
) -> int:
    """A sitting in a process of its own, killed `delay` seconds after the `count`-th event of a kind: "start", "append"
    (a line of the journal), "half" (half a line of it), "fsync". Returns the exit code, minus the signal; 75 when it
    stopped because a signal asked for it."""
    process = CONTEXT.Process(target=_work, args=(recipe, path, at, count, delay, by))
    process.start()
    process.join(60)
    assert process.exitcode is not None, "the sitting hangs"
    return process.exitcode


def _work(recipe: Recipe, path: Path, at: str, count: int, delay: float, by: int) -> None:
    seen: dict[str, int] = {}

    def event(kind: str) -> bool:
        seen[kind] = seen.get(kind, 0) + 1
        if kind != at or seen[kind] != count:
            return False
        if delay:
            threading.Timer(delay, os.kill, (os.getpid(), by)).start()
        return not delay

    def fsync(fd: int) -> None:
        if event("fsync"):
            os.kill(os.getpid(), by)
        before_fsync(fd)

    def append(self: journals.ReplyLog, entry: dict[str, Any]) -> None:
        if event("half"):
            line = checked_line(entry)
            os.write(self.file.fd, line[: len(line) // 2])
            os.kill(os.getpid(), by)
        before_append(self, entry)
        if event("append"):
            os.kill(os.getpid(), by)

    before_fsync, before_append = os.fsync, journals.ReplyLog.append
    os.fsync, journals.ReplyLog.append = fsync, append  # type: ignore[method-assign]
    rate_limit.FIRST_DELAY = 0.01
    os.environ["OPENAI_API_KEY"] = KEY
    tokenizer = tiny.build_tokenizer()
    event("start")
    with stop_requests() as stop_asked:
        try:
            ask(recipe, path, tokenizer, rows_of(tokenizer), stop_asked=stop_asked)
        except Stopped as stopped:
            os._exit(stopped.exit_code)
    os._exit(0)
