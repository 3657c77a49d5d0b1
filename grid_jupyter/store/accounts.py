"""The rows of accounts, roles, groups, tokens and invites. It fits identity's AccountRows; the rules are there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from grid_jupyter.errors import Conflict, IdNotUniqueError, NotFound
from grid_jupyter.store.database import Database, is_id
from grid_jupyter.store.records import FLAG_COLUMNS, Account, Group, Invite, Role, Token

T = TypeVar("T")

EXPIRED_TOKENS_KEPT_S = 30 * 86_400.0
"""How long a token that has expired or was revoked is remembered as such."""


@dataclass(frozen=True)
class StoredRole:
    """A role and its rights."""

    id: int
    name: str
    flags: frozenset[str]


@dataclass(frozen=True)
class StoredGroup:
    """A group."""

    id: int
    name: str


@dataclass(frozen=True)
class StoredAccount:
    """An account with its role's rights and the names of its groups."""

    id: int
    username: str
    password_hash: str | None = field(repr=False)
    role: str
    flags: frozenset[str]
    groups: tuple[str, ...]
    disabled: bool


@dataclass(frozen=True)
class StoredToken:
    """A token's account and times, in UTC seconds."""

    account: StoredAccount
    expires: float | None
    revoked: float | None


@dataclass(frozen=True)
class StoredInvite:
    """An invite. Times are UTC seconds."""

    role: str
    username: str | None
    expires: float
    used_at: float | None


class AccountTable:
    """Accounts in the database; each method is one transaction. identity/rows.py says what they do and raise."""

    def __init__(self, database: Database) -> None:
        self._run = database.run

    # ------------------------------------------------------------------ accounts

    async def accounts(
        self, *, username: str | None = None, role_id: int | None = None, group_id: int | None = None
    ) -> tuple[StoredAccount, ...]:
        if not all(is_id(id_) for id_ in (role_id, group_id) if id_ is not None):
            return ()
        query = select(Account).where(Account.disabled.is_(False)).order_by(Account.id)
        if username is not None:
            query = query.where(Account.username == username)
        if role_id is not None:
            query = query.where(Account.role_id == role_id)
        if group_id is not None:
            query = query.where(Account.groups.any(Group.id == group_id))
        return await self._run(lambda session: tuple(_account(row) for row in session.scalars(query)))

    async def account(self, account_id: int) -> StoredAccount:
        return await self._run(lambda session: _account(_find_account(session, account_id)))

    async def account_named(self, username: str) -> StoredAccount | None:
        def find(session: Session) -> StoredAccount | None:
            row = _named(session, username)
            return None if row is None else _account(row)

        return await self._run(find)

    async def first_with_role(self, role: str) -> StoredAccount | None:
        def find(session: Session) -> StoredAccount | None:
            query = select(Account).join(Account.role).where(Role.name == role, Account.disabled.is_(False))
            row = session.scalars(query.order_by(Account.id).limit(1)).first()
            return None if row is None else _account(row)

        return await self._run(find)

    async def add_account(self, username: str, password_hash: str | None, role: str, now: float) -> StoredAccount:
        return await self._run(lambda session: _account(_add_account(session, username, password_hash, role, now)))

    async def enable_account(self, account_id: int, role: str) -> StoredAccount:
        def enable(session: Session) -> StoredAccount:
            row = _find(session, Account, account_id, "User ID not found!")
            row.disabled, row.role = False, _role_named(session, role)
            return _account(row)

        return await self._run(enable)

    async def disable_account(self, account_id: int, now: float) -> None:
        def disable(session: Session) -> None:
            row = _find_account(session, account_id)
            row.disabled, row.password_hash, row.groups = True, None, []
            _revoke(session, account_id, now, None)

        await self._run(disable)

    async def rename_account(self, account_id: int, username: str, now: float) -> StoredAccount:
        def rename(session: Session) -> StoredAccount:
            row = _find_account(session, account_id)
            _refuse_taken(session, username)
            old, row.username = row.username, username
            session.flush()
            session.add(Account(username=old, password_hash=None, role=row.role, created=now, disabled=True))
            return _account(row)

        return await self._run(rename)

    async def set_password_hash(self, account_id: int, password_hash: str) -> StoredAccount:
        def change(session: Session, row: Account) -> None:
            row.password_hash = password_hash

        return await self._change(account_id, change)

    async def set_role(self, account_id: int, role_id: int) -> StoredAccount:
        def change(session: Session, row: Account) -> None:
            row.role = _find(session, Role, role_id, "Role ID not found!")

        return await self._change(account_id, change)

    async def set_groups(self, account_id: int, group_ids: Collection[int]) -> StoredAccount:
        def change(session: Session, row: Account) -> None:
            row.groups = [_find(session, Group, id_, "Group ID not found!") for id_ in sorted(set(group_ids))]

        return await self._change(account_id, change)

    async def _change(self, account_id: int, change: Callable[[Session, Account], None]) -> StoredAccount:
        def work(session: Session) -> StoredAccount:
            row = _find_account(session, account_id)
            change(session, row)
            return _account(row)

        return await self._run(work)

    # ------------------------------------------------------------------ roles and groups

    async def seed_roles(self, roles: Mapping[str, frozenset[str]]) -> None:
        def seed(session: Session) -> None:
            there = set(session.scalars(select(Role.name)))
            for name, flags in roles.items():
                if name not in there:
                    session.add(Role(name=name, **_columns(flags)))
                    session.flush()  # one by one, so that the ids follow the order

        await self._run(seed)

    async def roles(self) -> tuple[StoredRole, ...]:
        query = select(Role).order_by(Role.id)
        return await self._run(lambda session: tuple(_role(row) for row in session.scalars(query)))

    async def role(self, role_id: int) -> StoredRole:
        return await self._run(lambda session: _role(_find(session, Role, role_id, "Role ID not found!")))

    async def add_role(self, name: str, flags: frozenset[str]) -> StoredRole:
        def add(session: Session) -> StoredRole:
            _refuse_taken_role(session, name)
            row = Role(name=name, **_columns(flags))
            session.add(row)
            session.flush()
            return _role(row)

        return await self._run(add)

    async def edit_role(self, role_id: int, name: str, flags: frozenset[str]) -> StoredRole:
        def edit(session: Session) -> StoredRole:
            row = _find(session, Role, role_id, "Role ID not found!")
            if row.name != name:
                _refuse_taken_role(session, name)
            row.name = name
            for column, value in _columns(flags).items():
                setattr(row, column, value)
            return _role(row)

        return await self._run(edit)

    async def delete_role(self, role_id: int) -> None:
        def remove(session: Session) -> None:
            row = _find(session, Role, role_id, "Role ID not found!")
            having = Account.role_id == role_id
            if session.scalar(select(func.count()).where(having, Account.disabled.is_(False))):
                raise Conflict("there are accounts with this role; give them another one first")
            # A disabled account does nothing with its role; it gets another only if it is enabled again.
            other = select(func.min(Role.id)).where(Role.id != role_id).scalar_subquery()
            session.execute(update(Account).where(having).values(role_id=other))
            session.delete(row)

        await self._run(remove)

    async def groups(self) -> tuple[StoredGroup, ...]:
        query = select(Group).order_by(Group.id)
        return await self._run(lambda session: tuple(_group(row) for row in session.scalars(query)))

    async def group(self, group_id: int) -> StoredGroup:
        return await self._run(lambda session: _group(_find(session, Group, group_id, "Group ID not found!")))

    async def add_group(self, name: str) -> StoredGroup:
        def add(session: Session) -> StoredGroup:
            _refuse_taken_group(session, name)
            row = Group(name=name)
            session.add(row)
            session.flush()
            return _group(row)

        return await self._run(add)

    async def rename_group(self, group_id: int, name: str) -> StoredGroup:
        def rename(session: Session) -> StoredGroup:
            row = _find(session, Group, group_id, "Group ID not found!")
            if row.name != name:
                _refuse_taken_group(session, name)
            row.name = name
            return _group(row)

        return await self._run(rename)

    async def delete_group(self, group_id: int) -> None:
        await self._run(lambda session: session.delete(_find(session, Group, group_id, "Group ID not found!")))

    # ------------------------------------------------------------------ tokens and invites

    async def add_token(self, digest: str, account_id: int, label: str, created: float, expires: float | None) -> None:
        def add(session: Session) -> None:
            long_ago = created - EXPIRED_TOKENS_KEPT_S
            session.execute(delete(Token).where((Token.expires < long_ago) | (Token.revoked < long_ago)))
            _find_account(session, account_id)
            session.add(_token(digest, account_id, label, created, expires))

        await self._run(add)

    async def token(self, digest: str) -> StoredToken | None:
        def find(session: Session) -> StoredToken | None:
            row = session.get(Token, digest)
            return None if row is None else StoredToken(_account(row.account), row.expires, row.revoked)

        return await self._run(find)

    async def revoke_tokens(self, account_id: int, now: float, *, label: str | None = None) -> int:
        return await self._run(lambda session: _revoke(session, account_id, now, label))

    async def add_invite(self, digest: str, role: str, username: str | None, created: float, expires: float) -> None:
        await self._run(
            lambda session: session.add(
                Invite(digest=digest, role=role, username=username, created=created, expires=expires)
            )
        )

    async def end_invites(self, role: str, now: float) -> None:
        def change(session: Session) -> None:
            still_open = (Invite.role == role) & Invite.used_at.is_(None) & (Invite.expires > now)
            session.execute(update(Invite).where(still_open).values(expires=now))

        await self._run(change)

    async def has_open_invite(self, role: str, now: float) -> bool:
        query = select(func.count()).where(Invite.role == role, Invite.used_at.is_(None), Invite.expires > now)
        return await self._run(lambda session: bool(session.scalar(query)))

    async def redeem_invite(
        self,
        digest: str,
        admit: Callable[[StoredInvite | None], str],
        *,
        username: str,
        password_hash: str | None,
        token_digest: str,
        now: float,
    ) -> StoredAccount:
        def redeem(session: Session) -> StoredAccount:
            invite = session.get(Invite, digest, with_for_update=True)
            role = admit(
                None if invite is None else StoredInvite(invite.role, invite.username, invite.expires, invite.used_at)
            )
            row = _add_account(session, username, password_hash, role, now)
            session.add(_token(token_digest, row.id, "invite", now, None))
            if invite is not None:
                invite.used_by, invite.used_at = row.id, now
            return _account(row)

        return await self._run(redeem)


def _find(session: Session, kind: type[T], id_: int, otherwise: str) -> T:
    row = session.get(kind, id_) if is_id(id_) else None
    if row is None:
        raise NotFound(otherwise)
    return row


def _find_account(session: Session, account_id: int) -> Account:
    row = session.get(Account, account_id) if is_id(account_id) else None
    if row is None or row.disabled:
        raise NotFound("User ID not found!")
    return row


def _named(session: Session, username: str) -> Account | None:
    return session.scalars(select(Account).where(Account.username == username)).first()


def _role_named(session: Session, name: str) -> Role:
    row = session.scalars(select(Role).where(Role.name == name)).first()
    if row is None:
        raise NotFound("there is no such role here")
    return row


def _add_account(session: Session, username: str, password_hash: str | None, role: str, now: float) -> Account:
    _refuse_taken(session, username)
    row = Account(
        username=username, password_hash=password_hash, role=_role_named(session, role), created=now, groups=[]
    )
    session.add(row)
    session.flush()
    return row


def _refuse_taken(session: Session, username: str) -> None:
    if _named(session, username) is not None:
        raise IdNotUniqueError("this user name is taken, or was once; choose another")


def _refuse_taken_role(session: Session, name: str) -> None:
    if session.scalar(select(func.count()).where(Role.name == name)):
        raise IdNotUniqueError("there is a role of this name; choose another")


def _refuse_taken_group(session: Session, name: str) -> None:
    if session.scalar(select(func.count()).where(Group.name == name)):
        raise IdNotUniqueError("there is a group of this name; choose another")


def _token(digest: str, account_id: int, label: str, created: float, expires: float | None) -> Token:
    return Token(digest=digest, account_id=account_id, label=label, created=created, expires=expires)


def _revoke(session: Session, account_id: int, now: float, label: str | None) -> int:
    query = update(Token).where(Token.account_id == account_id, Token.revoked.is_(None))
    if label is not None:
        query = query.where(Token.label == label)
    return len(session.scalars(query.values(revoked=now).returning(Token.digest)).all())


def _columns(flags: frozenset[str]) -> dict[str, bool]:
    return {column: column in flags for column in FLAG_COLUMNS}


def _role(row: Role) -> StoredRole:
    return StoredRole(row.id, row.name, frozenset(column for column in FLAG_COLUMNS if getattr(row, column)))


def _group(row: Group) -> StoredGroup:
    return StoredGroup(row.id, row.name)


def _account(row: Account) -> StoredAccount:
    return StoredAccount(
        id=row.id,
        username=row.username,
        password_hash=row.password_hash,
        role=row.role.name,
        flags=_role(row.role).flags,
        groups=tuple(group.name for group in row.groups),
        disabled=row.disabled,
    )
