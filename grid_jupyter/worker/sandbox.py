"""What Workers of this machine are started behind: bubblewrap's sandbox, where it works, and a bare environment."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

from grid_jupyter.worker.devices import SHOWN, device_files

_ROOT_BYTES, _TEMPORARY_BYTES = str(1 << 20), str(64 << 20)
"""What the sandbox's own file systems may hold: nothing but places to mount on, and what libraries put into /tmp."""
_PACKAGE = Path(__file__).parent.parent
_KEPT = ("LANG", "LC_ALL", "LD_LIBRARY_PATH")
_KEPT_ON_GPU = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES")


class Sandbox:
    """No network, none of the Node's files, a read-only system; with `on_gpu`, the files of GPUs."""

    def __init__(self, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._bwrap = shutil.which("bwrap")
        self._found = ""
        self._own_users = ["--unshare-all", "--unshare-user", "--disable-userns"]

    @property
    def is_there(self) -> bool:
        """Whether there is one: known once it was tried."""
        return self._bwrap is not None

    def command(self) -> list[str]:
        """What stands before a command that is to run in it; nothing where there is none."""
        return self.arguments() if self.is_there else []

    def environment(self, on_gpu: bool) -> dict[str, str]:
        """No secret of the Node's surroundings reaches a Worker."""
        kept = {name: os.environ[name] for name in (*_KEPT, *(_KEPT_ON_GPU * on_gpu)) if name in os.environ}
        if on_gpu:  # that there is CUDA is found without its beginning, which would survive no fork
            kept["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
        return {**kept, "PATH": "/usr/bin:/bin", "HOME": "/tmp", "PYTHONPATH": str(_PACKAGE.parent)}  # noqa: S108

    async def probe(self) -> str:
        """Try it, once; in words, how Workers are kept apart."""
        if not self._found:
            self._found = await self._probed()
        return self._found

    async def _probed(self) -> str:
        if self._bwrap is None:
            return "reduced: a process each, no sandbox (bubblewrap is not installed)"
        failed, said = await self._tried()
        if failed:  # an older bubblewrap, or root where it may make no user namespace
            self._own_users = ["--unshare-all"]
            failed, said = await self._tried()
        if not failed:
            return "sandboxed: a process each, no network, read-only system, no view of this Node's files"
        self._bwrap = None
        first = said.decode(errors="replace").strip().splitlines()[:1]
        return f"reduced: a process each, no sandbox ({' '.join(first) or 'bubblewrap does not work here'})"

    async def _tried(self) -> tuple[int | None, bytes]:
        process = await asyncio.create_subprocess_exec(
            *self.arguments(), sys.executable, "-S", "-c", "pass",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, said = await process.communicate()
        return process.returncode, said

    def arguments(self) -> list[str]:
        """bubblewrap's arguments: no network, none of the Node's files, a read-only system."""
        command = [self._bwrap or "bwrap", *self._own_users, "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
        command += ["--size", _ROOT_BYTES, "--tmpfs", "/", "--proc", "/proc", "--dev", "/dev"]
        command += ["--size", _TEMPORARY_BYTES, "--tmpfs", "/tmp"]  # noqa: S108
        shown = ["/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/alternatives"]
        shown += ["/sys/devices/system/cpu", sys.prefix, sys.base_prefix, str(_PACKAGE)]
        for path in dict.fromkeys([*shown, str(Path(sys.executable).resolve().parent.parent)]):
            command += ["--ro-bind-try", path, path]
        command += ["--ro-bind-try", "/proc/sys", "/proc/sys"]  # a Node that root runs could write there
        if self._on_gpu:
            for path in SHOWN:
                command += ["--ro-bind-try", path, path]
            for path in device_files():
                command += ["--dev-bind-try", path, path]
        return [*command, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]  # noqa: S108
