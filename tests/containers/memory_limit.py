"""A hard limit of memory for a family of processes, as a container has one: a control group of the kernel's.

Version 2 where it has the memory controller, else version 1. Beyond the limit the kernel takes page cache back first,
and then kills.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

PATIENCE_S = 10.0


class NoLimitError(Exception):
    """No control group can be made here, and why."""


class MemoryLimit:
    """A control group with `most` bytes of memory and no swap. Raises NoLimitError."""

    def __init__(self, name: str, most: int) -> None:
        self.is_second, above = _above()
        self.folder = above / f"{name}-{os.getpid()}"
        try:
            self.folder.mkdir()
        except OSError as error:
            raise NoLimitError(f"no control group may be made in {above}: {error.strerror}") from None
        try:
            if self.is_second:
                self._tell("memory.max", most)
                self._tell("memory.swap.max", 0)
            else:
                self._tell("memory.limit_in_bytes", most)
                self._tell("memory.memsw.limit_in_bytes", most)  # memory and swap together
        except OSError as error:
            self.close()
            raise NoLimitError(f"{self.folder} takes no limit: {error.strerror}") from None

    def within(self, command: Sequence[str | Path]) -> list[str | Path]:
        """The command as a member from its first moment on, with all that it starts."""
        return ["/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', self.folder / "cgroup.procs", *command]

    def members(self) -> set[int]:
        """The processes in it."""
        return {int(line) for line in (self.folder / "cgroup.procs").read_text().split()}

    def killed(self) -> int:
        """How many of them the kernel killed for want of memory."""
        told = (self.folder / ("memory.events" if self.is_second else "memory.oom_control")).read_text()
        return int(re.findall(r"^oom_kill (\d+)$", told, re.MULTILINE)[0])

    def in_use(self) -> int:
        """Bytes that they have now and that cannot be taken back, with memory files: page cache is left out."""
        told = dict(line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
        names = ("anon", "shmem") if self.is_second else ("total_rss", "total_shmem")
        return sum(int(told.get(name, 0)) for name in names)

    def close(self) -> None:
        """Remove it; its processes have ended."""
        latest = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.folder.rmdir()
                return
            except OSError:  # the last of them is being put away
                if time.monotonic() > latest:
                    raise
                time.sleep(0.02)

    def _tell(self, name: str, number: int) -> None:
        file = self.folder / name
        if file.exists() or not re.search("swap|memsw", name):  # without swap there is nothing to say
            file.write_text(str(number))


def _above() -> tuple[bool, Path]:
    """Whether control groups are of version 2, and in which one of them another can be made: this process's own, or
    the nearest above it that hands the memory controller down."""
    own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for mount in (line.split() for line in Path("/proc/mounts").read_text().splitlines()):
        top, kind, options = Path(mount[1]), mount[2], mount[3].split(",")
        if kind == "cgroup2":
            for folder in _upwards(top, next((path for number, _, path in own if number == "0"), "/")):
                told = folder / "cgroup.subtree_control"
                if told.exists() and "memory" in told.read_text().split():
                    return True, folder
        elif kind == "cgroup" and "memory" in options:
            path = next((path for _, names, path in own if "memory" in names.split(",")), "/")
            return False, next(folder for folder in _upwards(top, path) if folder.exists())
    raise NoLimitError("the kernel's control groups are not to be seen here, or have no memory controller")


def _upwards(top: Path, path: str) -> list[Path]:
    folder = top / path.lstrip("/")
    return [one for one in (folder, *folder.parents) if one.is_relative_to(top)]
