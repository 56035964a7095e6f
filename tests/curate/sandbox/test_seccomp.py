"""What a program may ask of the kernel: what it needs, nothing by which sandboxes are left, and no memory uncounted."""

# ruff: noqa: E501 (programs and calls stand on one line, as a table)
from __future__ import annotations

import ast
import os
import re
import struct
from pathlib import Path

import pytest

from limbeck.curate.sandbox import seccomp
from limbeck.curate.sandbox.run import ProgramOutcome, SandboxLimits, run_tests, unavailable

WHY = unavailable("bwrap")
isolated = pytest.mark.skipif(bool(WHY), reason=f"no sandbox here: {WHY}")
x86_64 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")

DENIED = {
    "ptrace": (101,), "process_vm_readv": (310,), "process_vm_writev": (311,), "kcmp": (312,), "pidfd_getfd": (438,),
    "mount": (165,), "umount2": (166,), "pivot_root": (155,), "chroot": (161,), "move_mount": (429,),
    "open_tree": (428,), "fsopen": (430,), "fspick": (433,), "mount_setattr": (442,), "unshare": (272, 0x10000000),
    "setns": (308,), "open_by_handle_at": (304,), "name_to_handle_at": (303,), "init_module": (175,),
    "finit_module": (313,), "delete_module": (176,), "kexec_load": (246,), "reboot": (169,), "swapon": (167,),
    "settimeofday": (164,), "sethostname": (170,), "personality": (135, 0xFFFFFFFF), "syslog": (103,), "iopl": (172,),
    "socket": (41, 1, 1, 0), "bind": (49,), "connect": (42,), "listen": (50,), "accept4": (288,), "mknod": (133,),
    "a clone with namespaces": (56, 0x10000000),
    # memory of the kernel's that no limit of a process counts
    "System V queues": (68, 0, 0o1600), "System V semaphores": (64, 0, 8, 0o1600), "System V memory": (29, 0, 4096, 0o1600),
    "shmat": (30,), "POSIX queues": (240, b"x", 0o102, 0o600, 0), "memfd_create": (319, b"x", 0), "memfd_secret": (447, 0),
    "userfaultfd": (323, 0), "io_uring_setup": (425, 1), "io_uring_enter": (426,), "io_uring_register": (427,),
    "bpf": (321,), "perf_event_open": (298,), "add_key": (248, b"user", b"a", b"b", 1, 0xFFFFFFFD),
    "request_key": (249,), "keyctl": (250, 0, 0xFFFFFFFD, 1), "inotify_init1": (294, 0), "inotify_add_watch": (254,),
    "fanotify_init": (300,), "landlock_create_ruleset": (444,), "seccomp": (317, 1), "a filter by prctl": (157, 22, 2),
    "setxattr": (188,), "fsetxattr": (190,), "vmsplice": (278,), "io_setup": (206,), "mlock": (149,),
    "remap_file_pages": (216,), "process_madvise": (440,), "quotactl": (179,), "larger pipes": (72, 0, 1031, 1 << 20),
    "shared memory without a file": (9, 0, 4096, 3, 0x21, -1, 0), "the same, by another flag": (9, 0, 4096, 3, 0x23, -1, 0),
    "a call of the future": (480,), "the x32 interface": (0x40000000 + 39,), "other sockets": (53, 2, 1, 0, 0),
}  # fmt: skip

ASKS = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def ask():
    found = {{}}
    for name, call in {DENIED!r}.items():
        ctypes.set_errno(0)
        found[name] = (libc.syscall(*map(lambda it: ctypes.c_long(it) if isinstance(it, int) else it, call)), ctypes.get_errno())
    return found
"""


def run(program: str, *tests: str, limits: SandboxLimits) -> ProgramOutcome:
    return run_tests(program, tests, limits)


@isolated
@x86_64
def test_what_is_not_named_is_denied():
    failed = "{name for name, (answer, why) in ask().items() if answer != -1 or why not in (1, 38)}"
    found = run(
        ASKS, f"assert {failed} == set(), {failed}", f"assert len(ask()) == {len(DENIED)}", limits=SandboxLimits()
    )
    assert found.ok, found.reason


@isolated
def test_what_programs_need_is_allowed():
    program = """
import asyncio, fcntl, glob, hashlib, multiprocessing, os, select, signal, socket, sqlite3, subprocess, sys, tempfile
import threading, time, concurrent.futures
def loop():
    async def two(): return [await asyncio.sleep(0, n) for n in range(2)]
    return asyncio.run(two())
def threads():
    with concurrent.futures.ThreadPoolExecutor(3) as pool: return list(pool.map(abs, [-1, -2]))
def pair():
    a, b = socket.socketpair()
    a.sendall(b'x'); return b.recv(1)
def child(): return subprocess.run([sys.executable, '-I', '-c', 'print(5)'], stdout=subprocess.PIPE, stdin=subprocess.PIPE).stdout
def files():
    with tempfile.TemporaryDirectory() as folder:
        os.symlink('a', folder + '/b'); open(folder + '/a', 'w').write('x'); os.rename(folder + '/a', folder + '/c')
        return sorted(os.listdir(folder))
def database():
    c = sqlite3.connect('/tmp/x.db'); c.execute('create table t (a)'); c.execute('insert into t values (1)'); c.commit()
    return c.execute('select a from t').fetchall()
def alarm():
    heard = []
    signal.signal(signal.SIGALRM, lambda *a: heard.append(1)); signal.setitimer(signal.ITIMER_REAL, 0.01); signal.pause()
    return heard
def forked():
    if (pid := os.fork()) == 0: os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""
    tests = ["loop() == [0, 1]", "threads() == [1, 2]", "pair() == b'x'", "child() == b'5\\n'", "files() == ['b', 'c']",
             "database() == [(1,)]", "alarm() == [1]", "forked() == 3"]  # fmt: skip
    found = run(program, *[f"assert {test}" for test in tests], limits=SandboxLimits(seconds=20.0))
    assert found.ok, found


HEAP = SandboxLimits(seconds=20.0, memory_bytes=96 * 2**20)
HOLDS = {
    "empty files": "import os\nfor n in range(10**7): os.close(os.open(f'/tmp/{n}', os.O_CREAT))",
    "folders": "import os\nfor n in range(10**7): os.mkdir(f'/tmp/{n}')",
    "sockets": "import os, socket, time\nfor _ in range(9):\n    if os.fork() == 0:\n        kept = [socket.socketpair() for _ "
    "in range(25)]\n        time.sleep(60)\ntime.sleep(60)",
}


@isolated
@pytest.mark.parametrize("what", HOLDS)
def test_what_the_kernel_holds_is_counted(what):
    assert "more than 96 MiB together" in run(HOLDS[what], "assert f()", limits=HEAP).reason


def test_numbers_are_of_the_kernels_own_tables():
    """Against the headers of the kernel, where they are installed."""
    headers = {seccomp.X86_64: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), seccomp.AARCH64:
               Path("/usr/include/asm-generic/unistd.h")}  # fmt: skip
    for arch, header in headers.items():
        if not header.exists():
            pytest.skip("no headers of the kernel here")
        lines = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)\s*$", header.read_text(), re.MULTILINE)
        known = {name: int(number) for name, number in lines}
        for name, number in seccomp.numbers_of(arch).items():
            assert known.get(name, number) == number, name


@pytest.mark.parametrize("arch", [seccomp.X86_64, seccomp.AARCH64])
def test_the_filter_allows_what_is_named_and_nothing_else(arch, monkeypatch):
    """The filter, run step by step: every number that there is."""
    machine = {seccomp.X86_64: "x86_64", seccomp.AARCH64: "aarch64"}[arch]
    monkeypatch.setattr(seccomp.platform, "machine", lambda: machine)
    steps = list(struct.iter_unpack("<HBBI", seccomp.allowing_filter() or b""))
    named = seccomp.numbers_of(arch)
    for number in range(600):
        verdict = outcome(steps, [number, arch, 0, 0, *[0] * 12])
        special = {named[name] for name in seccomp.CLOSER}
        if number not in special:
            assert (verdict == seccomp.ALLOW) == (number in named.values()), number
    assert outcome(steps, [named["read"], 1, *[0] * 14]) == seccomp.KILL
    for name, look in seccomp.CLOSER.items():
        words = [named[name], arch, *[0] * 14]
        words[4 + 2 * look.argument] = look.value
        assert outcome(steps, words) == (seccomp.ALLOW if look.only else seccomp.EPERM)
        words[4 + 2 * look.argument] = look.value ^ (0x20000 if name == "clone" else 3)
        assert outcome(steps, words) == (seccomp.EPERM if look.only else seccomp.ALLOW)


def outcome(steps: list[tuple[int, int, int, int]], words: list[int]) -> int:
    """What a filter of the kernel returns on a call, given as words of 32 bits."""
    value, at = 0, 0
    while True:
        code, jump, other, k = steps[at]
        at += 1
        if code == seccomp.RETURN:
            return k
        if code == seccomp.LOAD:
            value = words[k // 4]
        elif code == seccomp.AND:
            value &= k
        else:
            holds = {seccomp.EQUAL: value == k, seccomp.AT_LEAST: value >= k, seccomp.ANY_BIT: bool(value & k)}[code]
            at += jump if holds else other


def test_no_source_of_the_sandbox_imports_more_than_the_standard_library():
    """It runs where nothing else is."""
    folder = Path(seccomp.__file__).parent
    for name in ("wire", "program", "judging", "runner"):
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("limbeck"):
                assert (node.module or "").rpartition(".")[2] in ("wire", "program", "judging")
