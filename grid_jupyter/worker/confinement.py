"""What a Worker gives up before it serves anybody: system calls, memory, files, the sight of its neighbours.

The sandbox keeps Workers from the machine (worker/pool.py), this keeps them from one another as well: they share a
user and a process namespace. A kernel that lacks one of these means the rest still holds.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import signal
import struct
from collections.abc import Sequence
from pathlib import Path

from grid_jupyter.worker.memory import limit_memory

FILES = 1024
"""Descriptors that one Worker may have open."""
THREADS = 2048
"""Threads of all Workers of a Node together."""
_SPARE_FILE_BYTES = 64 << 20
"""How much larger than a session's memory one file of its may be: a value and its header."""

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_FILTER = 2
_CLONE_THREAD, _CLONE_NEW = 0x00010000, 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # on every machine
_EXECUTE, _WRITE_FILE, _WRITING = 0x1, 0x2, 0x1FF3
"""Landlock's rights but to read: execute, write, remove and make of every kind."""

_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""AUDIT_ARCH of a machine, and the column of its numbers below."""

# Numbers of system calls on x86_64 and aarch64; None where a machine does not have the call.
_REFUSED: tuple[tuple[int | None, int | None], ...] = (
    (41, 198), (42, 203), (43, 202), (288, 242), (49, 200), (50, 201), (53, 199),  # socket … socketpair
    (57, None), (58, None), (59, 221), (322, 281),  # fork, vfork, execve, execveat
    (101, 117), (310, 270), (311, 271), (312, 272), (440, 440), (448, 448),  # ptrace, process_vm_*, kcmp, process_*
    (424, 424), (434, 434), (438, 438), (129, 138), (297, 240),  # pidfd_*, rt_sigqueueinfo, rt_tgsigqueueinfo
    (161, 51), (165, 40), (166, 39), (155, 41), (272, 97), (308, 268),  # chroot, mounts, pivot_root, unshare, setns
    (428, 428), (429, 429), (430, 430), (431, 431), (432, 432), (433, 433), (442, 442),  # the new mount calls
    (133, None), (259, 33), (303, 264), (304, 265),  # mknod*, name_to_handle_at, open_by_handle_at
    (105, 146), (106, 144), (113, 145), (114, 143), (117, 147), (119, 149), (116, 159), (126, 91),  # set*id, capset
    (248, 217), (249, 218), (250, 219), (321, 280), (298, 241), (323, 282),  # keys, bpf, perf_event_open, userfaultfd
    (425, 425), (426, 426), (427, 427), (444, 444),  # io_uring, landlock
    (29, 194), (30, 196), (64, 190), (68, 186), (240, 180),  # System V and POSIX queues, semaphores, shared memory
    (135, 92), (141, 140), (251, 30), (142, 118), (144, 119), (203, 122), (314, 274),  # priorities of others
    (256, 238), (279, 239), (237, 235), (238, 237),  # memory policy and pages of others
    (169, 142), (170, 161), (171, 162), (167, 224), (168, 225), (163, 89), (175, 105), (313, 273), (176, 106),  # system
    (246, 104), (320, 294), (164, 170), (227, 112), (159, 171), (305, 266), (103, 116), (179, 60), (443, 443),
)  # fmt: skip
_OWN_PROCESS = ((62, 129), (234, 131))
"""kill, tgkill: of this process alone."""
_OWN_LIMITS = (302, 261)
"""prlimit64: with 0, which is this process, alone."""
_TKILL, _CLONE, _CLONE3 = (200, 130), (56, 220), (435, 435)

_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF: ld [k], jeq, jset, ret
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCH, _FIRST = 0, 4, 16  # of struct seccomp_data; arguments are eight bytes each, low half first


def confine(memory_bytes: int, device_files: Sequence[str] = ()) -> None:
    """Give up what a Worker needs none of. `memory_bytes` is what it may use from here on, 0: whatever there is;
    `device_files` are those of its device, which it goes on opening.

    Cannot be taken back. Raises OSError where the kernel refuses what every Linux has.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")  # the kernel should rather end a session than the Node
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, FILES)
    _limit(resource.RLIMIT_NPROC, THREADS)
    _limit(resource.RLIMIT_MEMLOCK, 0)
    if memory_bytes:
        _limit(resource.RLIMIT_FSIZE, memory_bytes + _SPARE_FILE_BYTES)
        limit_memory(memory_bytes)
    hide()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    with contextlib.suppress(OSError):  # a kernel before 5.13; a read-only sandbox is what stands there
        _write_in_tmp_alone(device_files)
    found = program(platform.machine(), os.getpid())
    if found:
        _filter(found)


def hide() -> None:
    """Let no process of the same user look into this one, nor write to it; its children inherit that."""
    _prctl(_PR_SET_DUMPABLE, 0)


def end_with(parent: int) -> None:
    """Be killed when the process that forked this one, whose id this is, ends in whatever way."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os.kill(os.getpid(), signal.SIGKILL)


def _limit(which: int, most: int) -> None:
    ceiling = resource.getrlimit(which)[1]
    if ceiling != resource.RLIM_INFINITY:
        most = min(most, ceiling)
    resource.setrlimit(which, (most, most))


# ------------------------------------------------------------------ system calls


def program(machine: str, pid: int) -> bytes:
    """The filter of a Worker with this process id, as BPF; empty for a machine whose numbers are not known here.

    What is refused is answered with EPERM, as to somebody who may not: a library that tries goes on without.
    """
    if machine not in _MACHINES:
        return b""
    arch, column = _MACHINES[machine]
    refuse, missing = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    made = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":  # the x32 numbers are another way to the same calls
        made += [(_ANY_BIT, 0, 1, 0x40000000), (_RETURN, 0, 0, refuse)]
    made += [(_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, missing)]  # its flags cannot be seen; clone's can
    for numbers in (*_REFUSED, _TKILL):
        number = numbers[column]
        if number is not None:
            made += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, refuse)]
    for numbers, allowed in ((_OWN_PROCESS[0], pid), (_OWN_PROCESS[1], pid), (_OWN_LIMITS, 0)):
        made += [(_EQUAL, 0, 4, numbers[column])]
        made += [(_LOAD, 0, 0, _FIRST), (_EQUAL, 1, 0, allowed), (_RETURN, 0, 0, refuse), (_RETURN, 0, 0, _ALLOW)]
    made += [(_EQUAL, 0, 5, _CLONE[column]), (_LOAD, 0, 0, _FIRST)]
    made += [(_ANY_BIT, 2, 0, _CLONE_NEW), (_ANY_BIT, 0, 1, _CLONE_THREAD), (_RETURN, 0, 0, _ALLOW)]
    made += [(_RETURN, 0, 0, refuse), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *one) for one in made)


def _filter(found: bytes) -> None:
    class _Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))

    made = _Program(len(found) // 8, found)
    with contextlib.suppress(OSError):  # a kernel without filters; the sandbox is what stands there
        _prctl(_PR_SET_SECCOMP, _SECCOMP_FILTER, ctypes.addressof(made))


def _write_in_tmp_alone(device_files: Sequence[str]) -> None:
    """No file is made, removed, run, or opened to be written: not in /proc either, where root may. Libraries need
    their temporary folder, and it is a small one; a GPU's is used by writing to its files."""
    library = ctypes.CDLL(None, use_errno=True)
    rights = struct.pack("=Q", _WRITING)
    made = library.syscall(ctypes.c_long(_LANDLOCK_CREATE), rights, ctypes.c_size_t(len(rights)), ctypes.c_long(0))
    if made < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    try:
        places = [("/tmp", _WRITING & ~_EXECUTE), *((one, _WRITE_FILE) for one in ("/dev/null", *device_files))]  # noqa: S108
        for path, allowed in places:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", allowed, place)
            added = library.syscall(
                ctypes.c_long(_LANDLOCK_ADD), ctypes.c_long(made), ctypes.c_long(1), rule, ctypes.c_long(0)
            )
            os.close(place)
            if added:
                raise OSError(ctypes.get_errno(), "landlock_add_rule")
        if library.syscall(ctypes.c_long(_LANDLOCK_RESTRICT), ctypes.c_long(made), ctypes.c_long(0)):
            raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    finally:
        os.close(made)


def _prctl(option: int, first: int, second: int = 0) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_ulong(word) for word in (first, second, 0, 0)]
    if library.prctl(option, *words):
        raise OSError(ctypes.get_errno(), "prctl")
