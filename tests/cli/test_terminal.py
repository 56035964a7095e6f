"""Log records on stderr, where they are asked for and in a form that breaks nothing."""

import json
import logging
import re
import subprocess
import sys

import pytest
from rich.console import Console
from typer.testing import CliRunner

from limbeck.cli import app, terminal
from limbeck.cli.progress import bars

runner = CliRunner()


@pytest.fixture(autouse=True)
def quiet_afterwards():
    yield
    terminal.show_log("off")


def record(level=logging.INFO, text="tried again in %.1f s", *values):
    logging.getLogger("limbeck.endpoint.retry").log(level, text, *(values or (2.5,)))


def test_a_line_has_time_level_and_logger(capsys):
    terminal.show_log("info")
    record()
    out = capsys.readouterr()
    assert out.out == ""
    assert re.fullmatch(r"\d\d:\d\d:\d\d INFO    limbeck\.endpoint\.retry: tried again in 2\.5 s\n", out.err)


@pytest.mark.parametrize(("level", "shown"), [("debug", 3), ("info", 2), ("warning", 1), ("error", 0), ("off", 0)])
def test_levels(level, shown, capsys):
    terminal.show_log("debug")
    terminal.show_log(level)
    for each in (logging.DEBUG, logging.INFO, logging.WARNING):
        record(each)
    assert len(capsys.readouterr().err.splitlines()) == shown


def test_nothing_steers_the_terminal(capsys):
    terminal.show_log("info")
    record(logging.INFO, "%s", "\x1b[2Jgone")
    assert "\x1b" not in capsys.readouterr().err


def test_other_libraries_are_left_alone(capsys):
    root, other = logging.getLogger(), logging.getLogger("openai")
    before = (root.level, other.level, list(root.handlers))
    terminal.show_log("debug")
    other.debug("Authorization: Bearer sk-canary")
    assert (root.level, other.level, list(root.handlers)) == before and capsys.readouterr().err == ""


def test_records_go_above_the_bars(capsys):
    console = Console(file=sys.stderr, force_terminal=True, width=80)
    terminal.show_log("info")
    with bars(console):
        record()
    shown = capsys.readouterr().err
    assert re.search(r"\r\x1b\[2K\d\d:\d\d:\d\d INFO .*2\.5 s\n", shown), "the bar's line is cleared before it"


@pytest.mark.parametrize("how", ["option", "environment", "default"])
def test_the_option(how, monkeypatch):
    asked = []
    monkeypatch.setattr(app, "show_log", asked.append)
    monkeypatch.delenv("LIMBECK_LOG_LEVEL", raising=False)
    words = ["--log-level", "debug"] if how == "option" else []
    env = {"LIMBECK_LOG_LEVEL": "debug"} if how == "environment" else {}
    assert runner.invoke(app.app, [*words, "schema"], env=env).exit_code == 0
    assert asked == ["warning" if how == "default" else "debug", "off"], "nothing is left when the command ends"


def test_a_level_that_is_none():
    out = runner.invoke(app.app, ["--log-level", "loud", "schema"])
    assert out.exit_code == 2 and "--log-level is 'loud'" in out.stderr


def test_the_library_is_silent_by_default():
    code = "import limbeck, logging, sys; logging.getLogger('limbeck.x').error('loud'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.slow
def test_results_are_whole_at_debug():
    """Records and results do not share a stream."""
    code = "from limbeck.cli import main; main()"
    command = [sys.executable, "-c", code, "--log-level", "debug", "schema"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert json.loads(done.stdout)["title"] == "Recipe"


SAYS_MUCH = """
import os, sys, threading
from rich.console import Console
from limbeck.cli import app, terminal

def command(**_):
    from limbeck.cli.progress import bars
    os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), b"begun, ")
    for _ in range(3):
        terminal.print_error("something " * 100)
        print("as a library does", file=sys.stderr, flush=True)
        os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND), b"said, ")
    with bars(Console(stderr=True, force_terminal=True)) as shown:
        shown.on_message("more")
    os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND), b"done")

app.app = command
app.main()
"""


@pytest.mark.parametrize("how", ["2>&-", "2>/dev/full", "2>&1 >/dev/null | true", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_log_that_nobody_reads_ends_nothing(how, tmp_path):
    """stderr closed, on a full disk, a pipe whose reader has gone; and no file gets the number of a closed stream."""
    script, out = tmp_path / "says.py", tmp_path / "out"
    script.write_text(SAYS_MUCH)
    line = f"set -o pipefail; {sys.executable} {script} {out} {how}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == 0, done
    assert out.read_text() == "begun, said, said, said, done"
