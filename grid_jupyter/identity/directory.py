"""Users, roles and groups, read and edited on behalf of a caller: the rules of 0.2.9's routes, without its holes.

Nobody gives, by any edit, a right that they do not hold themselves, nor edits somebody who holds a right that they
lack. Names are what data sets allow, so a user name is only given by those who may create users, and once given it is
never given to another.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from grid_jupyter.errors import BadRequest, Conflict, Forbidden, IdNotUniqueError, NotFound
from grid_jupyter.identity import roles
from grid_jupyter.identity.rows import AccountRow, AccountRows, GroupRow, RoleRow

MAX_NAME_CHARS = 128
NOT_AUTHORIZED = "User is not authorized for this operation!"


@dataclass(frozen=True)
class Account:
    """Somebody known here, and what they may do. Never a password, nor its hash."""

    id: int
    username: str
    role: str
    flags: frozenset[str]
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Role:
    """A named set of rights."""

    id: int
    name: str
    flags: frozenset[str]


@dataclass(frozen=True)
class Group:
    """A named set of accounts."""

    id: int
    name: str


class Directory:
    """Users, roles and groups. Each method takes the caller first, and raises Forbidden where they lack the right,
    NotFound for an unknown id, IdNotUniqueError for a taken name, BadRequest for a name or flag that cannot be one."""

    def __init__(
        self,
        rows: AccountRows,
        clock: Callable[[], float],
        *,
        hash_password: Callable[[str], Awaitable[str]],
        login_label: str,
    ) -> None:
        self._rows = rows
        self._clock = clock
        self._hash_password = hash_password
        self._login_label = login_label

    # ------------------------------------------------------------------ users

    async def users(
        self,
        caller: Account,
        *,
        username: str | None = None,
        role_id: int | None = None,
        group_id: int | None = None,
    ) -> tuple[Account, ...]:
        """All users, or those that fit exactly what is given."""
        _need(caller, "can_triage_requests")
        if username is not None and not is_name(username):
            return ()
        found = await self._rows.accounts(username=username, role_id=role_id, group_id=group_id)
        return tuple(account_of(row) for row in found)

    async def user(self, caller: Account, user_id: int) -> Account:
        """One user; everybody may look at themselves."""
        if caller.id != user_id:
            _need(caller, "can_triage_requests")
        return account_of(await self._rows.account(user_id))

    async def create_user(
        self, caller: Account, username: str, password: str | None, role_id: int | None = None
    ) -> Account:
        """A new user, of the role User unless told."""
        _need(caller, "can_create_users")
        check_name(username, "user name")
        role = await (self.role_named(roles.USER) if role_id is None else self._rows.role(role_id))
        _must_hold(caller, role.flags)
        password_hash = None if password is None else await self._hash_password(password)
        return account_of(await self._rows.add_account(username, password_hash, role.name, self._clock()))

    async def set_password(self, caller: Account, user_id: int, password: str) -> Account:
        """A new password; the tokens that the old one was given for end with it."""
        row = await self._editable(caller, user_id, or_self=True)
        password_hash = await self._hash_password(password)
        await self._rows.revoke_tokens(row.id, self._clock(), label=self._login_label)
        return account_of(await self._rows.set_password_hash(row.id, password_hash))

    async def set_username(self, caller: Account, user_id: int, username: str) -> Account:
        """Another name. What data sets allow stays with the old one, which nobody can take."""
        row = await self._editable(caller, user_id)
        check_name(username, "user name")
        if row.username == username:
            return account_of(row)
        return account_of(await self._rows.rename_account(row.id, username, self._clock()))

    async def set_role(self, caller: Account, user_id: int, role_id: int) -> Account:
        """Another role. The first Owner keeps theirs."""
        row = await self._editable(caller, user_id)
        role = await self._rows.role(role_id)
        _must_hold(caller, role.flags)
        if role.name != row.role:
            await self._spare_first_owner(row)
        return account_of(await self._rows.set_role(row.id, role.id))

    async def set_groups(self, caller: Account, user_id: int, group_ids: Collection[int]) -> Account:
        """The groups that the user is in from now on."""
        row = await self._editable(caller, user_id)
        return account_of(await self._rows.set_groups(row.id, group_ids))

    async def delete_user(self, caller: Account, user_id: int) -> Account:
        """End an account and its tokens; its name stays taken. The first Owner stays."""
        row = await self._editable(caller, user_id, or_self=True)
        await self._spare_first_owner(row)
        await self._rows.disable_account(row.id, self._clock())
        return account_of(row)

    # ------------------------------------------------------------------ roles

    async def roles(self, caller: Account) -> tuple[Role, ...]:
        """All roles."""
        _need(caller, "can_triage_requests")
        return tuple(role_of(row) for row in await self._rows.roles())

    async def role(self, caller: Account, role_id: int) -> Role:
        """One role."""
        _need(caller, "can_triage_requests")
        return role_of(await self._rows.role(role_id))

    async def create_role(self, caller: Account, name: str, flags: Collection[str]) -> Role:
        """A new role."""
        _need(caller, "can_edit_roles")
        check_name(name, "role's name")
        _must_hold(caller, _flags(flags))
        return role_of(await self._rows.add_role(name, _flags(flags)))

    async def edit_role(
        self, caller: Account, role_id: int, *, name: str | None = None, flags: Collection[str] | None = None
    ) -> Role:
        """Another name, or other rights. The roles of the first start keep their names, Owner its rights too."""
        _need(caller, "can_edit_roles")
        row = await self._rows.role(role_id)
        new_name = row.name if name is None else name
        new_flags = row.flags if flags is None else _flags(flags)
        _must_hold(caller, row.flags | new_flags)
        if new_name != row.name:
            check_name(new_name, "role's name")
            _spare_seeded(row)
        if new_flags != row.flags and row.name == roles.OWNER:
            raise Forbidden("an Owner has every right; make another role for less")
        return role_of(await self._rows.edit_role(role_id, new_name, new_flags))

    async def delete_role(self, caller: Account, role_id: int) -> Role:
        """End a role that nobody has. Raises Conflict while somebody does."""
        _need(caller, "can_edit_roles")
        row = await self._rows.role(role_id)
        _must_hold(caller, row.flags)
        _spare_seeded(row)
        await self._rows.delete_role(role_id)
        return role_of(row)

    # ------------------------------------------------------------------ groups

    async def groups(self, caller: Account) -> tuple[Group, ...]:
        """All groups."""
        _need(caller, "can_triage_requests")
        return tuple(group_of(row) for row in await self._rows.groups())

    async def group(self, caller: Account, group_id: int) -> Group:
        """One group."""
        _need(caller, "can_triage_requests")
        return group_of(await self._rows.group(group_id))

    async def create_group(self, caller: Account, name: str) -> Group:
        """A new group, with nobody in it."""
        _need(caller, "can_create_groups")
        check_name(name, "group's name")
        return group_of(await self._rows.add_group(name))

    async def rename_group(self, caller: Account, group_id: int, name: str) -> Group:
        """Another name."""
        _need(caller, "can_create_groups")
        check_name(name, "group's name")
        return group_of(await self._rows.rename_group(group_id, name))

    async def delete_group(self, caller: Account, group_id: int) -> Group:
        """End a group; its members stay."""
        _need(caller, "can_create_groups")
        row = await self._rows.group(group_id)
        await self._rows.delete_group(group_id)
        return group_of(row)

    # ------------------------------------------------------------------ for the Node itself

    async def row_named(self, username: str) -> AccountRow:
        """The account of this name. Raises NotFound."""
        row = await self._rows.account_named(username) if is_name(username) else None
        if row is None or row.disabled:
            raise NotFound("there is no account of this name here; make it first (jupyter grid invite)")
        return row

    async def role_named(self, name: str) -> RoleRow:
        """The role of this name. Raises NotFound that lists those there are."""
        known = await self._rows.roles()
        for row in known:
            if row.name == name:
                return row
        raise NotFound(f"there is no such role; there are: {', '.join(row.name for row in known)}")

    async def check_free(self, username: str) -> None:
        """Raises IdNotUniqueError if the name is taken, BadRequest if it cannot be one."""
        check_name(username, "user name")
        if await self._rows.account_named(username) is not None:
            raise IdNotUniqueError("this user name is taken; choose another")

    # ------------------------------------------------------------------ within

    async def _editable(self, caller: Account, user_id: int, *, or_self: bool = False) -> AccountRow:
        if not (or_self and caller.id == user_id):
            _need(caller, "can_create_users")
        row = await self._rows.account(user_id)
        _must_hold(caller, row.flags)
        return row

    async def _spare_first_owner(self, row: AccountRow) -> None:
        first = await self._rows.first_with_role(roles.OWNER)
        if first is not None and first.id == row.id:
            raise Forbidden("the first Owner stays Owner, so that this Node always has one")


def account_of(row: AccountRow) -> Account:
    """What others may see of an account's row."""
    return Account(id=row.id, username=row.username, role=row.role, flags=row.flags, groups=row.groups)


def role_of(row: RoleRow) -> Role:
    """A role's row, as others see it."""
    return Role(id=row.id, name=row.name, flags=row.flags)


def group_of(row: GroupRow) -> Group:
    """A group's row, as others see it."""
    return Group(id=row.id, name=row.name)


def is_name(name: str) -> bool:
    """Whether this can be a name: 1 to 128 printable characters in their one Unicode form, no space at the ends."""
    return (
        0 < len(name) <= MAX_NAME_CHARS
        and name.isprintable()
        and name == name.strip()
        and unicodedata.is_normalized("NFKC", name)
    )


def check_name(name: str, what: str) -> None:
    """Raises BadRequest unless `is_name`."""
    if not is_name(name):
        raise BadRequest(
            f"a {what} has 1 to {MAX_NAME_CHARS} printable characters (Unicode NFKC) and no space at its ends"
        )


def _need(caller: Account, flag: str) -> None:
    if flag not in caller.flags:
        raise Forbidden(NOT_AUTHORIZED)


def _must_hold(caller: Account, flags: frozenset[str]) -> None:
    if not flags <= caller.flags:
        raise Forbidden(f"{NOT_AUTHORIZED} It concerns rights that you do not have yourself.")


def _flags(flags: Collection[str]) -> frozenset[str]:
    unknown = sorted(set(flags) - set(roles.FLAGS))
    if unknown:
        raise BadRequest(f"a role has no such right; the rights are: {', '.join(roles.FLAGS)}")
    return frozenset(flags)


def _spare_seeded(row: RoleRow) -> None:
    if row.name in roles.SEEDED:
        raise Conflict("this role was there from the start and keeps its name; make another one")
