"""What a Node or Network remembers about itself: short texts by key."""

from __future__ import annotations

from sqlalchemy.orm import Session

from grid_jupyter.store.database import Database
from grid_jupyter.store.records import Setting


class SettingTable:
    """Settings in the database; each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._run = database.run

    async def get(self, key: str, default: str = "") -> str:
        """The value, or the default where none was set."""

        def find(session: Session) -> str:
            row = session.get(Setting, key)
            return default if row is None else row.value

        return await self._run(find)

    async def set(self, key: str, value: str) -> None:
        """Remember this value from now on."""

        def change(session: Session) -> None:
            session.merge(Setting(key=key, value=value))

        await self._run(change)

    async def keep(self, key: str, value: str) -> str:
        """The value that was set first: this one, if none was."""

        def choose(session: Session) -> str:
            row = session.get(Setting, key)
            if row is not None:
                return row.value
            session.add(Setting(key=key, value=value))
            return value

        return await self._run(choose)
