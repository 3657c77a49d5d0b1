"""Reads files for the panel in processes of their own, so that no file holds the Jupyter server up."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from grid_jupyter.errors import GridError, LimitExceededError, from_wire
from grid_jupyter.wire.owner import FileTask

COMMAND = (sys.executable, "-m", "grid_jupyter.client.file_publishing")
AT_ONCE = 4
"""Files that are read at the same time; more wait."""
PREVIEW_S = 60.0
"""How long a preview may take, in seconds."""


class FileReader:
    """Starts the processes, and ends those that are left."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._running: set[asyncio.subprocess.Process] = set()

    async def do(self, task: FileTask) -> Any:
        """The answer to a task, as JSON has it. Raises what the process reports, LimitExceededError for a preview
        that takes too long. A process whose answer nobody waits for any more is ended."""
        async with self._turn:
            process = await asyncio.create_subprocess_exec(
                *COMMAND,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=self._environment,
            )
            self._running.add(process)
            try:
                told, _ = await asyncio.wait_for(
                    process.communicate(msgspec.json.encode(task)), PREVIEW_S if task.publish is None else None
                )
            except asyncio.TimeoutError:
                raise LimitExceededError(
                    f"the preview took longer than {PREVIEW_S:.0f} s; read the file in a notebook and publish it there"
                ) from None
            finally:
                self._running.discard(process)
                _kill(process)
        try:
            answer = msgspec.json.decode(told, type=dict[str, Any])
        except msgspec.MsgspecError:
            raise GridError("reading the file failed; Jupyter's log says more, and a notebook can publish it") from None
        if "answer" not in answer:
            raise from_wire(answer.get("code"), answer.get("error"))
        return answer["answer"]

    def close(self) -> None:
        """End what is still reading."""
        for process in list(self._running):
            _kill(process)


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
