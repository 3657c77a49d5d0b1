"""How often each data set was opened, by how many, and when last: what the audit log says, kept in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from grid_jupyter.store.audit import AuditTable

OPENED = "data-set-opened"
"""The event of the audit log that counts."""


@dataclass
class Used:
    """A data set's use, as far as the log goes back."""

    times: int = 0
    users: set[str] = field(default_factory=set)  # guests are one
    last: float | None = None  # UTC seconds


class Usage:
    """The use of all data sets. Its methods belong to one event loop."""

    def __init__(self, table: AuditTable) -> None:
        self._table = table
        self._used: dict[int, Used] = {}

    async def load(self) -> None:
        """Count what the log has."""
        for actor, details, rows, last in await self._table.counted(OPENED):
            self._count(details, actor, rows * int(details.get("repeated", 1)), last)

    def take(self, event: str, actor: str, details: dict[str, Any], at: float) -> None:
        """Something was noted just now."""
        if event == OPENED:
            self._count(details, actor, 1, at)

    def of(self, dataset: int) -> Used:
        """The use of a data set."""
        return self._used.get(dataset, Used())

    def _count(self, details: dict[str, Any], actor: str, times: int, at: float) -> None:
        used = self._used.setdefault(int(details["dataset"]), Used())
        used.times += times
        used.users.add(actor)
        used.last = at if used.last is None else max(used.last, at)
