"""Which Nodes belong to the Network: who may join under which name, and the table of those who did."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

from sqlalchemy import select
from sqlalchemy.orm import Session

from grid_jupyter.errors import BadRequest, Conflict, Forbidden, NotAuthenticatedError
from grid_jupyter.identity.accounts import Account
from grid_jupyter.identity.directory import check_name
from grid_jupyter.identity.tokens import digest
from grid_jupyter.store.database import Database
from grid_jupyter.store.records import Account as AccountRecord
from grid_jupyter.store.records import GridNode, Setting
from grid_jupyter.wire.network import MAX_ADDRESS_CHARS

MAX_NODE_NAME_CHARS = 100
"""Characters of a Node's name; its account's name is this and a mark behind it."""

TAKEN = "This ID has already been registered"
UNKNOWN = "This ID was not found in connected nodes"


@dataclass(frozen=True)
class Registered:
    """A Node that joined. Times are UTC seconds."""

    id: str
    name: str
    address: str
    account_id: int
    joined: float
    last_seen: float


class Admission(Enum):
    """In which way a Node may join."""

    REGISTER = "a newcomer, by invite"
    RETURN = "one that is known, by its own credential"
    READMIT = "one that is known, by an invite that the Network's owner made for it"


def admit(
    name: str, known: Registered | None, caller: Account | None, *, invited: bool, reserved_for: str | None = None
) -> Admission:
    """How a Node may join under a name, which `known` has; `caller` is whose credential came along.

    `reserved_for` is the only name that the invite is good for, if there is one.

    Raises Conflict for a taken name, NotAuthenticatedError without credential and invite, Forbidden for
    a credential or invite that is for something else.
    """
    if known is not None and caller is not None and caller.id == known.account_id:
        return Admission.RETURN
    if invited and reserved_for is not None:
        if reserved_for != name:
            raise Forbidden("this invite is for a Node of another name")
        return Admission.REGISTER if known is None else Admission.READMIT
    if known is not None:
        if caller is not None or invited:
            raise Conflict(TAKEN)
    elif invited:
        return Admission.REGISTER
    elif caller is not None:
        raise Forbidden(
            "this credential does not let a Node of this name join: a Node joins with an invite for Nodes, "
            "and later with the credential that it got then"
        )
    raise NotAuthenticatedError(
        "a Node joins with an invite of this Network ('jupyter grid invite --network --role Node'), "
        "and later with the credential that it got then"
    )


def may_forget(known: Registered | None, caller: Account) -> bool:
    """Whether the caller may strike this Node off: who runs the Network, or the Node itself."""
    runs_it = not caller.flags.isdisjoint(("can_manage_infrastructure", "can_edit_settings"))
    return runs_it or (known is not None and known.account_id == caller.id)


def check_node(name: str, address: str) -> None:
    """Raises BadRequest for a name or an address that a Node cannot have."""
    check_name(name, "Node's name")
    if len(name) > MAX_NODE_NAME_CHARS:
        raise BadRequest(f"a Node's name has at most {MAX_NODE_NAME_CHARS} characters")
    check_address(address)


def check_address(address: str) -> None:
    """Raises BadRequest unless this is http(s)://host[:port][/path], for others to connect to."""
    try:
        parts = urlsplit(address)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if (
        not fits
        or len(address) > MAX_ADDRESS_CHARS
        or not address.isprintable()
        or any(mark in address for mark in " \"'<>\\@?#")
    ):
        raise BadRequest(
            f"a Node's address is http://HOST:PORT or https://HOST:PORT, at most {MAX_ADDRESS_CHARS} characters"
        )


def new_account_name(node_name: str) -> str:
    """A name for the account of a newcomer. Names of accounts are never given twice, those of Nodes may be."""
    return f"{node_name}@{secrets.token_hex(4)}"


class Registry:
    """The table of the Nodes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> tuple[Registered, ...]:
        """Every Node, in order of joining."""

        def work(session: Session) -> tuple[Registered, ...]:
            found = session.scalars(select(GridNode).order_by(GridNode.joined, GridNode.name))
            return tuple(_registered(row) for row in found)

        return await self._database.run(work)

    async def find(self, *, name: str | None = None, account_id: int | None = None) -> Registered | None:
        """The Node of this name or account, if there is one."""

        def work(session: Session) -> Registered | None:
            query = select(GridNode)
            if name is not None:
                query = query.where(GridNode.name == name)
            if account_id is not None:
                query = query.where(GridNode.account_id == account_id)
            row = session.scalars(query).first()
            return None if row is None else _registered(row)

        return await self._database.run(work)

    async def add(self, name: str, address: str, account_id: int, now: float, *, node_id: str | None) -> Registered:
        """Register a newcomer. Raises Conflict if name or id is taken: of two at once, one joins."""

        def work(session: Session) -> Registered:
            taken = session.scalars(select(GridNode).where(GridNode.name == name)).first()
            if taken is not None or (node_id is not None and session.get(GridNode, node_id) is not None):
                raise Conflict(TAKEN)
            row = GridNode(
                id=node_id or secrets.token_hex(8),
                name=name,
                address=address,
                account_id=account_id,
                joined=now,
                last_seen=now,
            )
            session.add(row)
            session.flush()
            return _registered(row)

        return await self._database.run(work)

    async def readmit(self, node: Registered, address: str, account_id: int, now: float) -> str:
        """Give a Node another account; returns the name of the old one, whose credentials then end."""

        def work(session: Session) -> str:
            row = session.get(GridNode, node.id)
            if row is None:
                raise Conflict(UNKNOWN)  # struck off just now
            row.address, row.account_id, row.last_seen = address, account_id, now
            return _account_name(session, node)

        return await self._database.run(work)

    async def seen(self, name: str, now: float, *, address: str | None = None) -> None:
        """Note that the Node was there, and its address where it is another one."""

        def work(session: Session) -> None:
            row = session.scalars(select(GridNode).where(GridNode.name == name)).first()
            if row is not None:
                row.last_seen = now
                if address is not None:
                    row.address = address

        await self._database.run(work)

    async def remove(self, node: Registered) -> str:
        """Strike a Node off; returns the name of its account, whose credentials then end."""

        def work(session: Session) -> str:
            row = session.get(GridNode, node.id)
            if row is not None:
                session.delete(row)
            return _account_name(session, node)

        return await self._database.run(work)

    # ------------------------------------------------------------------ invites for one name

    async def reserve(self, invite: str, name: str) -> None:
        """Note that this invite is good for a Node of this name only, which may be known already."""

        def work(session: Session) -> None:
            session.merge(Setting(key=_invite_key(invite), value=name))

        await self._database.run(work)

    async def reserved_for(self, invite: str) -> str | None:
        """The only name that this invite is good for; None for any that is free."""

        def work(session: Session) -> str | None:
            found = session.get(Setting, _invite_key(invite))
            return None if found is None else found.value

        return await self._database.run(work)

    async def spent(self, invite: str) -> None:
        """Forget an invite that was used."""

        def work(session: Session) -> None:
            found = session.get(Setting, _invite_key(invite))
            if found is not None:
                session.delete(found)

        await self._database.run(work)


def _invite_key(invite: str) -> str:
    return f"invite {digest(invite)}"


def _account_name(session: Session, node: Registered) -> str:
    return session.scalars(select(AccountRecord.username).where(AccountRecord.id == node.account_id)).one()


def _registered(row: GridNode) -> Registered:
    return Registered(
        id=row.id,
        name=row.name,
        address=row.address,
        account_id=row.account_id,
        joined=row.joined,
        last_seen=row.last_seen,
    )
