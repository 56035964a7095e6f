"""What commands say: results on stdout; progress, messages and errors on stderr. The only file that prints."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Any

import typer

from limbeck.system.ranks import first_rank
from limbeck.text.visible import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from limbeck.types import OnProgress

INTERRUPTED, PIPE_WIDTH = 130, 120
STDERR = 2
SHOWN = 200
ENDLESS = re.compile(r"\S{1000,}")


def error_text(text: str) -> str:
    """An error's sentence as it is shown; further lines are indented, and words without an end are cut."""
    text = ENDLESS.sub(lambda word: f"{word[0][:SHOWN]}... ({len(word[0]):,} characters)", text)
    return "error: " + text.replace("\n", "\n       ")


def print_error(text: str) -> None:
    """Print a text on stderr; what terminals would obey is made visible."""
    print(visible(text, keep="\n"), file=sys.stderr, flush=True)


def print_result(result: Any, *, as_json: bool = False) -> None:
    """Print a JSON-able value, a text, or a renderable."""
    if not first_rank():
        return
    if as_json:
        print(json.dumps(result, indent=1, default=str))
    elif isinstance(result, str):
        print(result)
    else:
        from rich.console import Console

        Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH).print(result)


class SteadyLog(io.RawIOBase):
    """The bytes of stderr. What nobody can take (a closed pipe, a full disk, a terminal that is gone) is dropped: a log
    that nobody reads is no reason to end a run."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return STDERR

    def isatty(self) -> bool:
        return os.isatty(STDERR)

    def write(self, data: Any, /) -> int:
        with contextlib.suppress(OSError):
            os.write(STDERR, data)
        return len(data)


def steady_streams() -> None:
    """Standard streams that this process can rely on: those that were closed before it began lead nowhere, so that no
    file of a run gets their number and what is printed with it."""
    for number in range(STDERR + 1):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is sys.__stderr__:
        log: Any = SteadyLog()
        sys.stderr = io.TextIOWrapper(log, "utf-8", "backslashreplace", line_buffering=True, write_through=True)


class RecordLines(logging.Handler):
    """Log records as lines on stderr, wherever that is at the moment: while bars are drawn, above them."""

    def emit(self, record: logging.LogRecord) -> None:
        print_error(self.format(record))


def show_log(level: str) -> None:
    """Print what Limbeck's own loggers record from this level on; those of libraries are left as they are."""
    logger = logging.getLogger("limbeck")
    for handler in [each for each in logger.handlers if isinstance(each, RecordLines)]:
        logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    if level != "off":
        handler = RecordLines()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.setLevel(level.upper())


@contextlib.contextmanager
def watched() -> Iterator[tuple[OnProgress, Callable[[str], None]]]:
    """Callbacks that show progress and messages of a job; Ctrl-C inside ends with a sentence, a second one at once."""
    from rich.console import Console

    from limbeck.cli.progress import ProgressLines, bars

    console = Console(stderr=True)
    lines = ProgressLines(print_error)
    try:
        if not first_rank():
            yield (lambda _progress: None), (lambda _text: None)
        elif not console.is_terminal:
            yield lines.on_progress, print_error
        else:
            with bars(console) as shown:
                yield shown.on_progress, shown.on_message
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print_error("interrupted. What was finished is kept; run the same command again to go on.")
        raise typer.Exit(INTERRUPTED) from None
