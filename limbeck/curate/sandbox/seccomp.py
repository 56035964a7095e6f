"""System calls that a program in the sandbox has no use for, as a filter of the Linux kernel (classic BPF).

An allow list would be stricter, and would break with every new C library; the names below are those by which sandboxes
have been left, or limits on memory evaded. Numbers are of the kernel's own tables; on other machines there is no
filter, and namespaces alone hold.
"""

from __future__ import annotations

import platform
import struct

X86_64, AARCH64 = 0xC000003E, 0xC00000B7
DENIED = {
    # name: (x86_64, aarch64)
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "socket": (41, 198),
    # Memory that no limit of a process counts.
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
}
CLONE3 = 435  # its flags are in memory, where no filter looks; C libraries fall back to clone
CLONE, NEW_NAMESPACES = {X86_64: 56, AARCH64: 220}, 0x7E020000  # CLONE_NEW* in clone's flags
ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06


def denying_filter() -> bytes | None:
    """The filter as `bwrap --seccomp` reads it; None on a machine whose numbers are not known."""
    arch = {"x86_64": X86_64, "aarch64": AARCH64}.get(platform.machine())
    if arch is None:
        return None
    numbers = [pair[arch == AARCH64] for pair in DENIED.values()]
    steps = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, arch), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    if arch == X86_64:  # the x32 interface has numbers of its own
        steps += [(ANY_BIT, 0, 1, 0x40000000), (RETURN, 0, 0, EPERM)]
    steps += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, ENOSYS)]
    for number in numbers:
        steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, EPERM)]
    steps += [(EQUAL, 0, 3, CLONE[arch]), (LOAD, 0, 0, 16), (ANY_BIT, 0, 1, NEW_NAMESPACES), (RETURN, 0, 0, EPERM)]
    steps += [(RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("<HBBI", *step) for step in steps)
