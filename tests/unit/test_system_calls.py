"""The numbers of system calls that a Worker's filter refuses, against the kernel's own tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from grid_jupyter.worker import confinement

NAMED = """
socket 41 198, connect 42 203, accept 43 202, accept4 288 242, bind 49 200, listen 50 201, socketpair 53 199,
fork 57 -, vfork 58 -, execve 59 221, execveat 322 281, ptrace 101 117, process_vm_readv 310 270,
process_vm_writev 311 271, kcmp 312 272, process_madvise 440 440, process_mrelease 448 448,
pidfd_send_signal 424 424, pidfd_open 434 434, pidfd_getfd 438 438, rt_sigqueueinfo 129 138,
rt_tgsigqueueinfo 297 240, chroot 161 51, mount 165 40, umount2 166 39, pivot_root 155 41, unshare 272 97,
setns 308 268, open_tree 428 428, move_mount 429 429, fsopen 430 430, fsconfig 431 431, fsmount 432 432,
fspick 433 433, mount_setattr 442 442, mknod 133 -, mknodat 259 33, name_to_handle_at 303 264,
open_by_handle_at 304 265, setuid 105 146, setgid 106 144, setreuid 113 145, setregid 114 143, setresuid 117 147,
setresgid 119 149, setgroups 116 159, capset 126 91, add_key 248 217, request_key 249 218, keyctl 250 219,
bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, io_uring_setup 425 425, io_uring_enter 426 426,
io_uring_register 427 427, landlock_create_ruleset 444 444, shmget 29 194, shmat 30 196, semget 64 190,
msgget 68 186, mq_open 240 180, personality 135 92, setpriority 141 140, ioprio_set 251 30, sched_setparam 142 118,
sched_setscheduler 144 119, sched_setaffinity 203 122, sched_setattr 314 274, migrate_pages 256 238,
move_pages 279 239, mbind 237 235, set_mempolicy 238 237, reboot 169 142, sethostname 170 161,
setdomainname 171 162, swapon 167 224, swapoff 168 225, acct 163 89, init_module 175 105, finit_module 313 273,
delete_module 176 106, kexec_load 246 104, kexec_file_load 320 294, settimeofday 164 170, clock_settime 227 112,
adjtimex 159 171, clock_adjtime 305 266, syslog 103 116, quotactl 179 60, quotactl_fd 443 443,
tkill 200 130, clone 56 220, clone3 435 435, kill 62 129, tgkill 234 131, prlimit64 302 261
"""
"""Names with their numbers on x86_64 and aarch64, as Linux 6.1 publishes them: the headers below."""
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),  # aarch64 has the generic table
}


def table() -> dict[str, tuple[int | None, int | None]]:
    made = {}
    for one in NAMED.replace("\n", " ").split(","):
        name, *numbers = one.split()
        x86, arm = (None if number == "-" else int(number) for number in numbers)
        made[name] = (x86, arm)
    return made


def test_each_refused_number_has_the_same_meaning_on_both_machines():
    filtered = (
        *confinement._REFUSED, confinement._TKILL, confinement._CLONE, confinement._CLONE3,
        *confinement._OWN_PROCESS, confinement._OWN_LIMITS,
    )  # fmt: skip
    assert sorted(filtered, key=repr) == sorted(table().values(), key=repr)


@pytest.mark.parametrize("machine", HEADERS)
def test_the_numbers_are_those_of_the_kernels_headers(machine: str):
    header = HEADERS[machine]
    if not header.exists():
        pytest.skip(f"the kernel's headers are not installed: {header}")
    found = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text(), re.MULTILINE)
    numbers = {name: int(number) for name, number in found}
    column = list(HEADERS).index(machine)
    assert {name: both[column] for name, both in table().items()} == {name: numbers.get(name) for name in table()}
