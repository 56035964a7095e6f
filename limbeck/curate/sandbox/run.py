"""Running code that a model wrote: no network, no files but the interpreter's own, limits on everything.

`bwrap` (bubblewrap) makes namespaces in which nothing is but a read-only interpreter and an empty scratch in memory; a
seccomp filter allows the system calls that programs need, and no other (`seccomp`); the runner takes on limits on
processor time, memory, processes and files (`runner`); this process bounds wall time, output, and the memory of all
processes together, with what the kernel holds for them. Where isolation does not work there is no weaker run: a recipe
has to accept `isolation: rlimits` by name.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from limbeck.curate.sandbox.seccomp import allowing_filter
from limbeck.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)

Isolation = Literal["bwrap", "rlimits"]
SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/nix/store")
DEVICES = ("null", "random", "urandom")
"""Not `zero`: a shared mapping of it is memory that no limit counts."""
INSIDE = "/python"
FIRST_UID, NUM_UIDS = 2_000_000_000, 1_000_000
"""Each run as root takes a user of its own, so that the limit on processes counts its own only."""

MOST_FILES = 64
KERNEL_BYTES = {"socket:": 2 * 212_992, "pipe:": 65_536}
"""What the kernel holds at most for one of each: a socket's buffers, asked for as large as they get, a pipe's pages."""

INODE_BYTES = 1024
VERDICT_BYTES = 65536
POLL_SECONDS = 0.2
INSTALL = "Install bubblewrap (Debian, Ubuntu: apt install bubblewrap; Fedora: dnf install bubblewrap)"
ACCEPT = "or accept limits without isolation by name: isolation: rlimits (unsafe: the code can read your files)"


@dataclass(frozen=True)
class SandboxLimits:
    """What a program may use: `seconds` of wall time (and of processor time), `memory_bytes` of each process
    (addresses) and of all together (pages, and what the kernel holds for them, looked at every `POLL_SECONDS`),
    `processes` (threads count),
    `scratch_bytes` of files, `output_bytes` of each of stdout and stderr."""

    seconds: float = 5.0
    memory_bytes: int = 512 * 2**20
    processes: int = 16
    scratch_bytes: int = 64 * 2**20
    output_bytes: int = 65536


class ProgramOutcome(NamedTuple):
    """`ok`: all tests passed; None where they cannot tell. `reason` in a sentence; `output` is the beginning of stdout
    and stderr."""

    ok: bool | None
    reason: str
    output: str


def run_tests(
    program: str,
    tests: Sequence[str],
    limits: SandboxLimits,
    isolation: Isolation = "bwrap",
    *,
    entry_point: str | None = None,
) -> ProgramOutcome:
    """Run `program` and then every one of `tests` (Python source; an assertion that fails, or any error, is a failure).
    What they only define is called: `test_...`, and `check(candidate)` with the function `entry_point` or the only one.

    Raises SandboxError where the isolation does not work on this machine. Never raises for what a program does.
    """
    require(isolation)
    return _run({"program": program, "tests": list(tests), "entry_point": entry_point}, limits, isolation)


def require(isolation: Isolation) -> None:
    """Raise SandboxError unless programs can be isolated on this machine; tried once per process."""
    why = unavailable(isolation)
    if isolation == "rlimits":
        logger.debug("programs run under resource limits alone: files and network are open to them")
    if why:
        raise SandboxError(f"{why} {INSTALL}, {ACCEPT}.")


@cache
def unavailable(isolation: Isolation) -> str:
    """Why programs cannot be isolated here: "" when they can. Proven with a program that looks for a way out."""
    if sys.platform != "linux":
        return "Programs are isolated by Linux namespaces, which this system does not have."
    if isolation == "rlimits":
        return ""
    if not shutil.which("bwrap"):
        return "bwrap is not on the PATH, so programs cannot be isolated."
    probe = "import os\ndef roots(): return sorted(os.listdir('/'))\ndef canary(): return os.environ.get('HOME')"
    tests = [
        "assert set(roots()) <= {'bin', 'dev', 'lib', 'lib32', 'lib64', 'nix', 'python', 'tmp', 'usr'}, str(roots())",
        "assert canary() is None",
    ]
    try:
        found = _run({"program": probe, "tests": tests}, SandboxLimits(seconds=20.0), "bwrap")
    except SandboxError as error:
        return str(error)
    logger.info("programs can%s be isolated by bwrap on this machine", "" if found.ok else "not")
    return "" if found.ok else f"bwrap does not isolate programs here ({found.reason} {found.output.strip()[:300]})."


def _run(task: dict, limits: SandboxLimits, isolation: Isolation) -> ProgramOutcome:
    with ExitStack() as stack:
        source = _memory_file(stack, json.dumps(task).encode())
        verdict_read, verdict_write = os.pipe()
        stack.callback(os.close, verdict_read)
        command, descriptors = _command(limits, isolation, stack)
        bounds = json.dumps(_bounds(limits, isolation))
        command += ["-I", "-S", "-c", _inside(), str(source), str(verdict_write), bounds]
        try:
            # The child must not outlive this thread: bwrap dies with it, and everything inside with bwrap.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[source, verdict_write, *descriptors],
                start_new_session=True,
                env={"PATH": "/usr/bin:/bin"},
                cwd=stack.enter_context(tempfile.TemporaryDirectory(prefix="limbeck-"))
                if isolation != "bwrap"
                else "/",
            )
        except OSError as error:
            raise SandboxError(f"{command[0]} does not start: {error.strerror or error}.") from error
        finally:
            os.close(verdict_write)
        try:
            output, verdict, stopped = _watch(process, verdict_read, limits)
        finally:
            _kill(process)
    return _outcome(output, verdict, stopped, process.returncode)


@cache
def _inside() -> str:
    """The runner and its neighbours as one text, which makes modules of them: inside there is no package of ours."""
    folder = Path(__file__).parent
    parts = {name: (folder / f"{name}.py").read_text() for name in ("wire", "program", "judging", "runner")}
    return f"""import sys, types
for name in ("limbeck", "limbeck.curate", "limbeck.curate.sandbox"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
for name, text in {parts!r}.items():
    module = types.ModuleType(f"limbeck.curate.sandbox.{{name}}")
    sys.modules[module.__name__] = module
    exec(compile(text, name + ".py", "exec", dont_inherit=True), module.__dict__)
module.main()
"""


def _bounds(limits: SandboxLimits, isolation: Isolation) -> dict[str, int]:
    """What `runner.confine` takes on: limits by the kernel's names, and a user."""
    bounds = {
        "AS": limits.memory_bytes,
        "CPU": max(int(limits.seconds + 1), 1),
        "FSIZE": limits.scratch_bytes,
        "NOFILE": MOST_FILES,
        "SIGPENDING": MOST_FILES,  # timers, and signals that wait
        "MSGQUEUE": 0,
        "CORE": 0,
    }
    if (
        isolation == "bwrap"
    ):  # all processes of a user count: without a user of its own it would depend on what else runs
        bounds["NPROC"] = limits.processes
        if os.geteuid() == 0:  # limits on processes do not bind root
            bounds["user"] = FIRST_UID + secrets.randbelow(NUM_UIDS)
    return bounds


def _command(limits: SandboxLimits, isolation: Isolation, stack: ExitStack) -> tuple[list[str], list[int]]:
    """What starts the interpreter, and the file descriptors that it needs."""
    python = Path(sys.executable).resolve()
    base = Path(sys.base_prefix).resolve()
    if isolation == "rlimits":
        return [str(python)], []
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxError(f"bwrap is no longer on the PATH. {INSTALL}.")
    inside = f"{INSIDE}/{python.relative_to(base)}" if python.is_relative_to(base) else str(python)
    mounts = [part for path in SYSTEM for part in ("--ro-bind-try", path, path)]
    command = [
        os.path.abspath(bwrap),
        "--die-with-parent",
        "--new-session",
        "--clearenv",
        "--unshare-ipc",
        "--unshare-pid",
    ]
    command += ["--unshare-net", "--unshare-uts", "--unshare-cgroup-try", *mounts, "--ro-bind", str(base), INSIDE]
    # Not `--dev`: its /dev/shm has no limit.
    command += [part for name in DEVICES for part in ("--dev-bind-try", f"/dev/{name}", f"/dev/{name}")]
    command += ["--size", str(limits.scratch_bytes), "--perms", "1777", "--tmpfs", "/tmp"]
    command += ["--remount-ro", "/", "--chdir", "/tmp"]
    descriptors = []
    if (rules := allowing_filter()) is not None:
        descriptors = [_memory_file(stack, rules)]
        command += ["--seccomp", str(descriptors[0])]
    if os.geteuid() == 0:  # until the runner has become another user
        return [*command, "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--", inside], descriptors
    return [*command, "--unshare-user", "--", inside], descriptors


def _memory_file(stack: ExitStack, content: bytes) -> int:
    """A descriptor of a file in memory, from its beginning."""
    number = os.memfd_create("limbeck")
    stack.callback(os.close, number)
    with os.fdopen(os.dup(number), "wb") as file:
        file.write(content)
    os.lseek(number, 0, os.SEEK_SET)
    return number


def _watch(process: subprocess.Popen, verdict_read: int, limits: SandboxLimits) -> tuple[bytes, bytes, str]:
    """Read what comes until the process ends or a limit is passed: (output, verdict, why it was stopped or "")."""
    assert process.stdout and process.stderr
    end = time.monotonic() + limits.seconds
    next_look = time.monotonic() + POLL_SECONDS
    parts: dict[int, bytearray] = {}
    names = {process.stdout.fileno(): "stdout", process.stderr.fileno(): "stderr", verdict_read: "verdict"}
    with selectors.DefaultSelector() as selector:
        for number in names:
            os.set_blocking(number, False)
            selector.register(number, selectors.EVENT_READ)
            parts[number] = bytearray()
        while True:
            ended = process.poll() is not None
            for key, _ in selector.select(0 if ended else min(max(end - time.monotonic(), 0), POLL_SECONDS)):
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fd)
                parts[key.fd] += chunk
                most = VERDICT_BYTES if key.fd == verdict_read else limits.output_bytes
                if len(parts[key.fd]) > most:
                    return _shown(parts, names, most), b"", f"it wrote more than {most:,} bytes to {names[key.fd]}"
            if ended:
                return _shown(parts, names, limits.output_bytes), bytes(parts[verdict_read]), ""
            if time.monotonic() >= next_look:
                if _memory_of(process.pid) > limits.memory_bytes:
                    what = f"its processes used more than {limits.memory_bytes >> 20:,} MiB together"
                    return _shown(parts, names, limits.output_bytes), b"", what
                next_look = time.monotonic() + POLL_SECONDS
            if time.monotonic() >= end:
                return _shown(parts, names, limits.output_bytes), b"", f"it ran longer than {limits.seconds:g} s"


def _memory_of(pid: int) -> int:
    """Bytes of a process and all below it, with what the kernel holds for them; a shared page is shared out among its
    users. What has ended meanwhile, or cannot be read, counts nothing. Orphans of a namespace are children of its first
    process, so nobody is missed."""
    total, files, inodes = 0, set[str](), 0
    todo = [pid]
    while todo:
        folder = Path(f"/proc/{todo.pop()}")
        with suppress(OSError):
            lines = (folder / "smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss:", "SwapPss:")))
        with suppress(OSError):
            files.update(os.readlink(number) for number in (folder / "fd").iterdir())
        inodes = max(inodes, _inodes(folder / "root"))
        with suppress(OSError):
            for task in (folder / "task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
    held = sum(KERNEL_BYTES.get(name.partition("[")[0], 0) for name in files)
    return total + held + inodes * INODE_BYTES


def _inodes(root: Path) -> int:
    """Files in the scratch of a process, empty ones too: their size says nothing of them."""
    with suppress(OSError):
        if (root / INSIDE[1:]).is_dir():
            scratch = os.statvfs(root / "tmp")
            return scratch.f_files - scratch.f_ffree
    return 0


def _shown(parts: dict[int, bytearray], names: dict[int, str], most: int) -> bytes:
    return b"".join(bytes(parts[number][:most]) for number, name in names.items() if name != "verdict")


def _kill(process: subprocess.Popen) -> None:
    """End the whole group; with its init gone, nothing of the namespace survives."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream:
            stream.close()


def _outcome(output: bytes, verdict: bytes, stopped: str, code: int) -> ProgramOutcome:
    text = output.decode(errors="replace")
    if stopped:
        return ProgramOutcome(False, f"{stopped} and was stopped", text)
    try:
        found = json.loads(verdict)
        return ProgramOutcome(found["ok"] if found["ok"] is None else found["ok"] is True, str(found["reason"]), text)
    except (ValueError, KeyError, TypeError):
        return ProgramOutcome(False, f"it ended with code {code} before its tests did", text)
