"""System calls that a program in the sandbox may make, as a filter of the Linux kernel (classic BPF).

What is not named is denied, so that a call which a later kernel brings is no way out. None of those named gives memory
that no limit counts, as System V and POSIX queues, semaphores and segments, files in memory, keys, rings, watches and
extended attributes do. Five calls are looked at more closely (`CLOSER`). Numbers are of the kernel's own tables; on
other machines there is no filter, and namespaces alone hold.
"""

from __future__ import annotations

import platform
import struct
from typing import NamedTuple

X86_64, AARCH64 = 0xC000003E, 0xC00000B7

ALLOWED = """
access 21 -; alarm 37 -; arch_prctl 158 -; brk 12 214; capget 125 90; chdir 80 49; chmod 90 -; chown 92 -;
clock_getres 229 114; clock_gettime 228 113; clock_nanosleep 230 115; clone 56 220; close 3 57; close_range 436 436;
copy_file_range 326 285; creat 85 -; dup 32 23; dup2 33 -; dup3 292 24; epoll_create 213 -; epoll_create1 291 20;
epoll_ctl 233 21; epoll_pwait 281 22; epoll_pwait2 441 441; epoll_wait 232 -; eventfd 284 -; eventfd2 290 19;
execve 59 221; execveat 322 281; exit 60 93; exit_group 231 94; faccessat 269 48; faccessat2 439 439;
fadvise64 221 223; fallocate 285 47; fchdir 81 50; fchmod 91 52; fchmodat 268 53; fchmodat2 452 452; fchown 93 55;
fchownat 260 54; fcntl 72 25; fdatasync 75 83; fgetxattr 193 10; flistxattr 196 13; flock 73 32; fork 57 -;
fstat 5 80; fstatfs 138 44; fsync 74 82; ftruncate 77 46; futex 202 98; futex_requeue 456 456; futex_wait 455 455;
futex_waitv 449 449; futex_wake 454 454; futimesat 261 -; get_robust_list 274 100; getcpu 309 168; getcwd 79 17;
getdents 78 -; getdents64 217 61; getegid 108 177; geteuid 107 175; getgid 104 176; getgroups 115 158;
getitimer 36 102; getpeername 52 205; getpgid 121 155; getpgrp 111 -; getpid 39 172; getppid 110 173;
getpriority 140 141; getrandom 318 278; getresgid 120 150; getresuid 118 148; getrlimit 97 163; getrusage 98 165;
getsid 124 156; getsockname 51 204; getsockopt 55 209; gettid 186 178; gettimeofday 96 169; getuid 102 174;
getxattr 191 8; ioctl 16 29; kill 62 129; lchown 94 -; lgetxattr 192 9; link 86 -; linkat 265 37; listxattr 194 11;
llistxattr 195 12; lseek 8 62; lstat 6 -; madvise 28 233; membarrier 324 283; mincore 27 232; mkdir 83 -;
mkdirat 258 34; mmap 9 222; mprotect 10 226; mremap 25 216; msync 26 227; munmap 11 215; nanosleep 35 101;
newfstatat 262 79; open 2 -; openat 257 56; openat2 437 437; pause 34 -; pidfd_open 434 434;
pidfd_send_signal 424 424; pipe 22 -; pipe2 293 59; pkey_alloc 330 289; pkey_free 331 290; pkey_mprotect 329 288;
poll 7 -; ppoll 271 73; prctl 157 167; pread64 17 67; preadv 295 69; preadv2 327 286; prlimit64 302 261;
pselect6 270 72; pwrite64 18 68; pwritev 296 70; pwritev2 328 287; read 0 63; readahead 187 213; readlink 89 -;
readlinkat 267 78; readv 19 65; recvfrom 45 207; recvmmsg 299 243; recvmsg 47 212; rename 82 -; renameat 264 38;
renameat2 316 276; restart_syscall 219 128; rmdir 84 -; rseq 334 293; rt_sigaction 13 134; rt_sigpending 127 136;
rt_sigprocmask 14 135; rt_sigqueueinfo 129 138; rt_sigreturn 15 139; rt_sigsuspend 130 133; rt_sigtimedwait 128 137;
rt_tgsigqueueinfo 297 240; sched_get_priority_max 146 125; sched_get_priority_min 147 126; sched_getaffinity 204 123;
sched_getattr 315 275; sched_getparam 143 121; sched_getscheduler 145 120; sched_rr_get_interval 148 127;
sched_setaffinity 203 122; sched_setattr 314 274; sched_setparam 142 118; sched_setscheduler 144 119;
sched_yield 24 124; select 23 -; sendfile 40 71; sendmmsg 307 269; sendmsg 46 211; sendto 44 206;
set_robust_list 273 99; set_tid_address 218 96; setfsgid 123 152; setfsuid 122 151; setgid 106 144;
setgroups 116 159; setitimer 38 103; setpgid 109 154; setpriority 141 140; setregid 114 143; setresgid 119 149;
setresuid 117 147; setreuid 113 145; setrlimit 160 164; setsid 112 157; setsockopt 54 208; setuid 105 146;
shutdown 48 210; sigaltstack 131 132; signalfd 282 -; signalfd4 289 74; socketpair 53 199; splice 275 76; stat 4 -;
statfs 137 43; statx 332 291; symlink 88 -; symlinkat 266 36; sync_file_range 277 84; sysinfo 99 179; tee 276 77;
tgkill 234 131; time 201 -; timer_create 222 107; timer_delete 226 111; timer_getoverrun 225 109;
timer_gettime 224 108; timer_settime 223 110; timerfd_create 283 85; timerfd_gettime 287 87; timerfd_settime 286 86;
times 100 153; tkill 200 130; truncate 76 45; umask 95 166; uname 63 160; unlink 87 -; unlinkat 263 35; utime 132 -;
utimensat 280 88; utimes 235 -; vfork 58 -; wait4 61 260; waitid 247 95; write 1 64; writev 20 66
"""
"""Name, and number on x86_64 and on aarch64; `-` where there is none."""

NEWEST = 456
"""Calls above it are answered with ENOSYS: C libraries then do without, where EPERM would be an error to them."""

CLONE3 = 435  # its flags are in memory, where no filter looks; C libraries fall back to clone
ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
LOAD, EQUAL, AT_LEAST, ANY_BIT, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06


class _Look(NamedTuple):
    """A call is denied where `argument & mask` is `value`, or (`only`) where it is anything else."""

    argument: int
    mask: int
    value: int
    only: bool = False


CLOSER = {
    "clone": _Look(0, 0x7E020000, 0, only=True),  # CLONE_NEW*: no namespaces of its own
    "fcntl": _Look(1, 0xFFFFFFFF, 1031),  # F_SETPIPE_SZ: pipes keep their 64 KiB
    # MAP_SHARED | MAP_ANONYMOUS: such memory stays when all but a page of it is unmapped, and no limit sees it.
    "mmap": _Look(3, 0x21, 0x21),
    "prctl": _Look(0, 0xFFFFFFFF, 22),  # PR_SET_SECCOMP
    "socketpair": _Look(0, 0xFFFFFFFF, 1, only=True),  # AF_UNIX
}


def allowing_filter() -> bytes | None:
    """The filter as `bwrap --seccomp` reads it; None on a machine whose numbers are not known."""
    arch = {"x86_64": X86_64, "aarch64": AARCH64}.get(platform.machine())
    if arch is None:
        return None
    numbers = numbers_of(arch)
    steps = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, arch), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    if arch == X86_64:  # the x32 interface has numbers of its own
        steps += [(ANY_BIT, 0, 1, 0x40000000), (RETURN, 0, 0, EPERM)]
    steps += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, ENOSYS)]
    for name, look in CLOSER.items():
        if_equal, otherwise = (ALLOW, EPERM) if look.only else (EPERM, ALLOW)
        steps += [(EQUAL, 0, 5, numbers[name]), (LOAD, 0, 0, 16 + 8 * look.argument), (AND, 0, 0, look.mask)]
        steps += [(EQUAL, 0, 1, look.value), (RETURN, 0, 0, if_equal), (RETURN, 0, 0, otherwise)]
    for first, last in _ranges(sorted(number for name, number in numbers.items() if name not in CLOSER)):
        steps += [(AT_LEAST, 2, 0, last + 1), (AT_LEAST, 0, 1, first), (RETURN, 0, 0, ALLOW)]
    steps += [(AT_LEAST, 0, 1, NEWEST + 1), (RETURN, 0, 0, ENOSYS), (RETURN, 0, 0, EPERM)]
    return b"".join(struct.pack("<HBBI", *step) for step in steps)


def numbers_of(arch: int) -> dict[str, int]:
    """The calls that are allowed, those of `CLOSER` among them."""
    rows = [entry.split() for entry in ALLOWED.replace("\n", " ").split(";")]
    return {row[0]: int(number) for row in rows if (number := row[1 + (arch == AARCH64)]) != "-"}


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Numbers in order as (first, last) of each row without a gap."""
    found = [(numbers[0], numbers[0])]
    for number in numbers[1:]:
        first, last = found[-1]
        if number == last + 1:
            found[-1] = (first, number)
        else:
            found.append((number, number))
    return found
