"""Programs that try to get out, to stay, to take everything, or to say that they passed. All must fail."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from limbeck.curate.sandbox.run import ProgramOutcome, SandboxLimits, require, run_tests, unavailable
from limbeck.errors import SandboxError

WHY = unavailable("bwrap")
isolated = pytest.mark.skipif(bool(WHY), reason=f"no sandbox here: {WHY}")
SHORT = SandboxLimits(seconds=2.0)


def run(program: str, *tests: str, limits: SandboxLimits = SHORT) -> ProgramOutcome:
    """What becomes of it; without tests, of a test that every program passes which runs to its end."""
    return run_tests(f"{program}\ndef ran(): return True\n", tests or ["assert ran()"], limits)


def value(expression: str, before: str = "") -> ProgramOutcome:
    """What a program gets when it evaluates an expression: in the reason, since the test fails."""
    return run(f"{before}\ndef get():\n    return repr({expression})\n", "assert False, str(get())")


@isolated
def test_programs_pass_and_fail():
    assert run("def f(x): return x + 1", "assert f(1) == 2", "assert f(2) == 3").ok
    found = run("def f(x): return x", "assert f(1) == 1", "assert f(2) == 3")
    assert not found.ok and found.reason == "test 2 failed: assert f(2) == 3"
    assert "SyntaxError" in run("def f(:").reason
    assert "KeyError" in run("def f(): raise KeyError('a')", "f()").reason
    assert run("def f(): raise KeyError('a')", "try:\n    f()\nexcept KeyError:\n    pass").ok


@isolated
@pytest.mark.parametrize(
    "data",
    ["None", "True", "-1", "2**80", "1.5", "float('inf')", "'é\\n'", "b'\\0'", "(1, [2, {3}], {'a': (4,)})", "1j"],
)
def test_plain_data_comes_back_as_it_is(data):
    assert run(f"def same(x): return x\ndef make(): return {data}", f"assert same({data}) == {data} == make()").ok


@isolated
def test_objects_of_the_program_can_be_used():
    program = "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
    program += "    def pop(self): return self.items.pop()\n"
    assert run(program, "s = Stack()\ns.items = [7]\nassert s.pop() == 7").ok
    assert run("from collections import Counter", "assert Counter('aab') == {'a': 2, 'b': 1}").ok
    assert run(program, "s = Stack()\ns.push((1, 2.5))\nassert s.items == [(1, 2.5)] and s.pop() == (1, 2.5)").ok


# ---- taking everything -----------------------------------------------------------------------------------------------


@isolated
@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("while True: pass", "longer than 2 s"),
        ("import time\ntime.sleep(1000)", "longer than 2 s"),
        ("import os\nos.close(1); os.close(2)\nwhile True: pass", "longer than 2 s"),
        ("import signal\nfor s in (2, 15): signal.signal(s, signal.SIG_IGN)\nwhile True: pass", "longer than 2 s"),
        ("while True: print('y' * 10_000)", "bytes to stdout"),
        ("import sys\nwhile True: sys.stderr.write('y' * 10_000)", "bytes to stderr"),
        ("import os\nwhile True: os.fork()", ""),
        ("import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()", "thread"),
        ("x = b'a' * (4 << 30)", "MemoryError"),
        ("x = []\nwhile True: x.append(bytes(1 << 20))", "MemoryError"),
        ("f = open('/tmp/big', 'wb')\nwhile True: f.write(bytes(1 << 20))", ""),
        ("n = 0\nwhile True:\n    open(f'/tmp/{n}', 'wb').write(bytes(8 << 20)); n += 1", "No space left"),
        ("def f(): return f()\nf()", "RecursionError"),
    ],
)
def test_nothing_can_be_used_up(program, said):
    begun = time.monotonic()
    found = run(program)
    assert not found.ok and said in found.reason + found.output
    assert len(found.output) <= 2 * SHORT.output_bytes
    assert time.monotonic() - begun < 20


@isolated
@pytest.mark.parametrize(
    "leave",
    [
        "os.setsid()",
        "os.setsid()\n    if os.fork(): os._exit(0)",
        "[signal.signal(s, signal.SIG_IGN) for s in (1, 2, 15)]",
    ],
)
def test_nothing_stays_behind(leave):
    mark = f"limbeck-test-{os.getpid()}-{time.monotonic_ns()}"
    program = f"import os, signal, sys, time\nif os.fork() == 0:\n    {leave}\n    "
    program += f"os.execv('{'/bin/sleep' if os.path.exists('/bin/sleep') else '/usr/bin/sleep'}', ['{mark}', '600'])"
    assert run(program).ok  # the program itself does nothing wrong
    wait_for(mark, to_run=False, seconds=2)


def running(mark: str) -> bool:
    """Whether a process of this name runs anywhere on this machine."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if process.read_text(errors="replace").startswith(f"{mark}\0"):
                return True
        except OSError:
            continue
    return False


def wait_for(mark: str, *, to_run: bool, seconds: float) -> None:
    end = time.monotonic() + seconds
    while running(mark) is not to_run and time.monotonic() < end:
        time.sleep(0.05)
    assert running(mark) is to_run


@isolated
def test_a_killed_parent_leaves_nothing():
    mark = f"limbeck-orphan-{os.getpid()}"
    program = f"import os\nif os.fork() == 0:\n    os.execv('/usr/bin/sleep', ['{mark}', '600'])\nos.wait()"
    script = "from limbeck.curate.sandbox.run import SandboxLimits, run_tests\n"
    script += f"run_tests({program!r}, ['assert True'], SandboxLimits(60))"
    with subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[3]) as process:
        wait_for(mark, to_run=True, seconds=20)
        process.send_signal(signal.SIGKILL)
    wait_for(mark, to_run=False, seconds=10)


# ---- getting out -----------------------------------------------------------------------------------------------------


@isolated
def test_the_network_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted: list[object] = []
        thread = threading.Thread(target=lambda: accepted.append(server.accept()), daemon=True)
        thread.start()
        port = server.getsockname()[1]
        found = value(f"socket.create_connection(('127.0.0.1', {port}), 1)", "import socket")
        assert "PermissionError" in found.reason or "refused" in found.reason
        thread.join(0.3)
        assert not accepted


@isolated
def test_files_of_this_machine_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_CANARY", "canary-of-the-environment")
    secret = tmp_path / "secret"
    secret.write_text("canary-of-the-files")
    for path in ("/etc/shadow", "/etc/passwd", str(Path.home()), str(secret), "/proc/1/environ", "/sys", "/root"):
        found = value(f"open({path!r}).read() if not os.path.isdir({path!r}) else os.listdir({path!r})", "import os")
        assert not found.ok and "Error" in found.reason, (path, found)
    found = value("dict(os.environ)", "import os")
    assert "canary" not in found.reason and "LIMBECK" not in found.reason
    assert "canary" not in value("[os.readlink(f'/proc/self/fd/{n}') for n in range(9)]", "import os").reason


@isolated
def test_links_lead_nowhere(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("canary")
    found = value("open('/tmp/link').read()", f"import os\nos.symlink({str(secret)!r}, '/tmp/link')")
    assert "FileNotFoundError" in found.reason
    found = value("os.listdir('/tmp/up/..')", "import os\nos.symlink('/', '/tmp/up')")
    assert "root" not in found.reason and "home" not in found.reason


@isolated
@pytest.mark.parametrize("path", ["/python/lib/x", "/usr/x", "/x", "/dev/x", "/dev/shm/x", os.__file__])
def test_nothing_but_the_scratch_can_be_written(path):
    assert "Error" in value(f"open({path!r}, 'w').write('x')").reason


@isolated
def test_nobody_else_can_be_killed():
    program = "import os, signal\ndef kill():\n    os.kill(-1, signal.SIGKILL)"
    assert not run(program, "kill()").ok
    assert f"{os.getpid()}" not in value("os.getppid()", "import os").reason


@isolated
def test_the_user_has_no_rights():
    assert "assert" not in value("os.getuid()", "import os").reason
    assert "PermissionError" in value("os.setuid(0)", "import os").reason or os.geteuid() != 0


READS_TESTS = """
import sys, gc
def held():
    frame = sys._getframe()
    while frame:
        yield from [*frame.f_locals.values(), *frame.f_globals.values()]
        frame = frame.f_back
    yield from gc.get_objects()
seen = [repr(thing) for thing in held() if isinstance(thing, (dict, list, str))]
word = ["qui", "nce-med", "lar"]
found = [text for text in seen if "".join(word) in text]
def f(x): return "".join(word) if found else ""
"""


@isolated
def test_the_tests_are_nowhere_in_the_programs_memory():
    """A program that could read them would return what they want to hear. A word: numbers stand in addresses too."""
    assert not run(READS_TESTS, "assert f(17) == 'quince-medlar'").ok
    assert run(READS_TESTS, "assert f(17) == ''", "assert f(1) != 'quince-medlar'").ok


@pytest.mark.slow
@isolated
def test_processes_share_one_limit_on_memory():
    """Each stays below the limit of one; together they do not."""
    limits = SandboxLimits(seconds=15.0, memory_bytes=128 * 2**20)
    program = "import os, time\nfor _ in range(5):\n    if os.fork() == 0:\n        "
    program += "kept = b'x' * (60 << 20)\n        time.sleep(60)\ntime.sleep(60)"
    assert "more than 128 MiB together" in run(program, limits=limits).reason
    alone = "def f(): return len(b'x' * (60 << 20)), __import__('time').sleep(1)"
    assert run(alone, "assert f()[0] == 60 << 20", limits=limits).ok


# ---- what tests see --------------------------------------------------------------------------------------------------


@isolated
def test_a_function_may_be_called_as_pythons_own():
    assert run("def sum(a, b): return a * b", "assert sum(10, 15) == 150").ok


@isolated
def test_what_a_function_does_to_its_arguments_is_seen():
    assert run("def sort(x): x.sort()", "x = [3, 1]\nsort(x)\nassert x == [1, 3]").ok
    assert run("def add(d): d['a'] = 1", "d = {}\nadd(d)\nassert d == {'a': 1}").ok


# ---- where there is no sandbox ---------------------------------------------------------------------------------------


def test_without_a_sandbox_there_is_no_weaker_run(monkeypatch):
    monkeypatch.setenv("PATH", "")
    unavailable.cache_clear()
    try:
        with pytest.raises(SandboxError, match=r"bwrap is not on the PATH.*apt install bubblewrap.*isolation: rlimits"):
            require("bwrap")
    finally:
        unavailable.cache_clear()


def test_limits_alone_have_to_be_named():
    found = run_tests("def f(): return 1", ["assert f() == 1"], SHORT, "rlimits")
    assert found.ok
    assert "longer" in run_tests("while True: pass", ["assert f()"], SandboxLimits(seconds=0.5), "rlimits").reason


@isolated
def test_bwrap_may_stand_anywhere_on_the_path(tmp_path, monkeypatch):
    """Nix, conda and Homebrew have it elsewhere; one that does not start is an error with a name."""
    own, marks = tmp_path / "bwrap", tmp_path / "started"
    own.write_text(f'#!/bin/sh\necho x >> {marks}\nexec {shutil.which("bwrap")} "$@"\n')
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_tests("def f(): return 1", ["assert f() == 1"], SHORT).ok and marks.exists()
    own.write_text("no program")
    unavailable.cache_clear()
    try:
        with pytest.raises(SandboxError, match="does not start"):
            require("bwrap")
    finally:
        unavailable.cache_clear()
