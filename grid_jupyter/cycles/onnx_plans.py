"""Plans as ONNX: each is converted once, however many devices ask for it, and kept while there is room."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

MAX_BYTES = 64 << 20
"""Of all that is kept."""


class OnnxPlans:
    """The latest conversions, by the plan's hash."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._coming: dict[str, asyncio.Task[bytes]] = {}
        self.converted = 0
        """Conversions that were made."""

    async def get(self, sha256: str, read: Callable[[], bytes]) -> bytes:
        """A plan's document as ONNX; `read` gives the document, and may block. Raises PlanInvalidError for one that
        cannot be."""
        found = self._kept.get(sha256)
        if found is not None:
            self._kept.move_to_end(sha256)
            return found
        task = self._coming.get(sha256)
        if task is None:
            task = self._coming[sha256] = asyncio.create_task(self._make(sha256, read))
            task.add_done_callback(lambda _: self._coming.pop(sha256, None))
        return await asyncio.shield(task)

    async def _make(self, sha256: str, read: Callable[[], bytes]) -> bytes:
        self.converted += 1
        made = self._kept[sha256] = await asyncio.to_thread(_onnx, read)
        while len(self._kept) > 1 and sum(map(len, self._kept.values())) > self._max_bytes:
            self._kept.popitem(last=False)
        return made


def _onnx(read: Callable[[], bytes]) -> bytes:
    from grid_jupyter.plans.onnx_writer import to_onnx
    from grid_jupyter.plans.reader import read_plan

    return to_onnx(read_plan(read()))
