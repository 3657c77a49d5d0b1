"""The rows of the Nodes that joined a Network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from grid_jupyter.errors import IdNotUniqueError, NotFound
from grid_jupyter.store.database import Database
from grid_jupyter.store.records import GridNode


@dataclass(frozen=True)
class StoredNode:
    """A member: where it was last, and the account whose credential it presents. Times are UTC seconds."""

    id: str
    name: str
    address: str
    account_id: int
    joined: float
    last_seen: float


class GridNodeTable:
    """A Network's members in the database; each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._run = database.run

    async def add(self, node: StoredNode) -> None:
        """A new member. Raises IdNotUniqueError if its id or name is taken."""

        def insert(session: Session) -> None:
            if session.get(GridNode, node.id) is not None or _named(session, node.name) is not None:
                raise IdNotUniqueError("This ID has already been registered")
            session.add(GridNode(**asdict(node)))

        await self._run(insert)

    async def by_name(self, name: str) -> StoredNode:
        """The member of this name. Raises NotFound."""
        return await self._run(lambda session: _stored(_find(session, name)))

    async def list(self) -> tuple[StoredNode, ...]:
        """All members, in the order in which they joined."""
        query = select(GridNode).order_by(GridNode.joined, GridNode.name)
        return await self._run(lambda session: tuple(_stored(row) for row in session.scalars(query)))

    async def move(self, name: str, address: str, now: float) -> StoredNode:
        """The member is here, and was seen now. Raises NotFound."""

        def change(session: Session) -> StoredNode:
            row = _find(session, name)
            row.address, row.last_seen = address, now
            return _stored(row)

        return await self._run(change)

    async def seen(self, last_seen: Mapping[str, float]) -> None:
        """When these members, by name, were seen last; names that are gone are passed over."""

        def change(session: Session) -> None:
            for name, when in last_seen.items():
                row = _named(session, name)
                if row is not None:
                    row.last_seen = when

        await self._run(change)

    async def remove(self, name: str) -> StoredNode:
        """It is a member no longer. Raises NotFound."""

        def delete(session: Session) -> StoredNode:
            row = _find(session, name)
            session.delete(row)
            return _stored(row)

        return await self._run(delete)


def _named(session: Session, name: str) -> GridNode | None:
    return session.scalars(select(GridNode).where(GridNode.name == name)).first()


def _find(session: Session, name: str) -> GridNode:
    row = _named(session, name)
    if row is None:
        raise NotFound("This ID was not found in connected nodes")
    return row


def _stored(row: GridNode) -> StoredNode:
    return StoredNode(
        id=row.id,
        name=row.name,
        address=row.address,
        account_id=row.account_id,
        joined=row.joined,
        last_seen=row.last_seen,
    )
