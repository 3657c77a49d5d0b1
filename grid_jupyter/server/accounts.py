"""The routes of users, roles, groups and invites, which Node and Network share: 0.2.9's paths and shapes over identity.

0.2.9 says `email` where this software says user name; here either is read, and both are answered.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from grid_jupyter.errors import BadRequest, NotFound
from grid_jupyter.identity.accounts import Account
from grid_jupyter.identity.directory import Directory, Group, Role
from grid_jupyter.identity.roles import FLAGS
from grid_jupyter.server.door import Door


class _Login(msgspec.Struct):
    password: str
    email: str | None = None
    username: str | None = None


class _NewUser(_Login):
    role: int | None = None


class _Search(msgspec.Struct):
    email: str | None = None
    username: str | None = None
    role: int | None = None
    group: int | None = None


class _Email(msgspec.Struct):
    email: str


class _Password(msgspec.Struct):
    password: str


class _UserRole(msgspec.Struct):
    role: int


class _UserGroups(msgspec.Struct):
    groups: list[int]


class _RoleBody(msgspec.Struct):
    name: str | None = None
    can_triage_requests: bool | None = None
    can_edit_settings: bool | None = None
    can_create_users: bool | None = None
    can_create_groups: bool | None = None
    can_edit_roles: bool | None = None
    can_manage_infrastructure: bool | None = None
    can_upload_data: bool | None = None


class _Named(msgspec.Struct):
    name: str


class _Acceptance(msgspec.Struct):
    invite: str
    username: str
    password: str | None = None


class AccountDoor(Door):
    """What these routes have in common."""

    changes: ClassVar[bool] = True
    """Whether what is not a GET changes something."""

    @property
    def directory(self) -> Directory:
        return self.accounts.directory

    def on_finish(self) -> None:
        """A Node notes changes, and attempts at them, in its audit log: who, what path, how it was answered. Of an
        attempt no more than the kind of path, so that strangers fill no log with paths of their own choice."""
        note = self.settings.get("note")
        if note is None or not self.changes or self.request.method not in ("POST", "PUT", "PATCH", "DELETE"):
            return
        who = "" if self._account is None else self._account.username
        done = self.get_status() == 200
        path = self.request.path if done else type(self).__name__
        note("accounts" if done else "accounts-refused", who, method=self.request.method, path=path)

    async def users_json(self, caller: Account, users: tuple[Account, ...]) -> list[dict[str, Any]]:
        """Users with role and groups expanded; group ids are for those who may list groups."""
        group_ids: dict[str, int] = {}
        if any(user.groups for user in users) and "can_triage_requests" in caller.flags:
            group_ids = {group.name: group.id for group in await self.directory.groups(caller)}
        role_ids = {name: (await self.directory.role_named(name)).id for name in {user.role for user in users}}
        return [
            {
                "id": user.id,
                "email": user.username,
                "username": user.username,
                "role": role_json(Role(id=role_ids[user.role], name=user.role, flags=user.flags)),
                "groups": [
                    {"id": group_ids[name], "name": name} if name in group_ids else {"name": name}
                    for name in user.groups
                ],
            }
            for user in users
        ]

    async def reply_user(self, caller: Account, user: Account, status: int = 200) -> None:
        (shown,) = await self.users_json(caller, (user,))
        self.reply({"success": True, "user": shown}, status)


def role_json(role: Role) -> dict[str, Any]:
    """A role as 0.2.9 showed it: one key a right."""
    return {"id": role.id, "name": role.name, **{flag: flag in role.flags for flag in FLAGS}}


def group_json(group: Group) -> dict[str, Any]:
    """A group as 0.2.9 showed it."""
    return {"id": group.id, "name": group.name}


def _username(body: _Login | _Search) -> str | None:
    return body.username if body.username is not None else body.email


# ------------------------------------------------------------------ users


class Users(AccountDoor):
    """GET: all users. POST: a new one, by somebody who may create users."""

    async def get(self) -> None:
        caller = await self.require()
        users = await self.directory.users(caller)
        self.reply({"success": True, "users": await self.users_json(caller, users)})

    async def post(self) -> None:
        caller = await self.require()
        body = self.body(_NewUser)
        user = await self.directory.create_user(caller, _given(_username(body)), body.password, body.role)
        await self.reply_user(caller, user)


class UsersLogin(AccountDoor):
    """POST: a token for user name and password, which are the credential here."""

    open_to_all = frozenset({"POST"})

    async def post(self) -> None:
        body = self.body(_Login)
        token = await self.accounts.login(_given(_username(body)), body.password, self.origin)
        self.reply({"success": True, "token": token})


class UsersSearch(AccountDoor):
    """POST: the users that fit exactly."""

    changes = False

    async def post(self) -> None:
        caller = await self.require()
        body = self.body(_Search)
        users = await self.directory.users(caller, username=_username(body), role_id=body.role, group_id=body.group)
        self.reply({"success": True, "users": await self.users_json(caller, users)})


class User(AccountDoor):
    """GET and DELETE one user."""

    async def get(self, user_id: str) -> None:
        caller = await self.require()
        await self.reply_user(caller, await self.directory.user(caller, _id(user_id, "User")))

    async def delete(self, user_id: str) -> None:
        caller = await self.require()
        await self.reply_user(caller, await self.directory.delete_user(caller, _id(user_id, "User")))


class UserField(AccountDoor):
    """PUT one thing about a user."""

    async def put(self, user_id: str, field: str) -> None:
        caller = await self.require()
        number = _id(user_id, "User")
        if field == "email":
            user = await self.directory.set_username(caller, number, self.body(_Email).email)
        elif field == "password":
            user = await self.directory.set_password(caller, number, self.body(_Password).password)
        elif field == "role":
            user = await self.directory.set_role(caller, number, self.body(_UserRole).role)
        else:
            user = await self.directory.set_groups(caller, number, self.body(_UserGroups).groups)
        await self.reply_user(caller, user)


# ------------------------------------------------------------------ roles


class Roles(AccountDoor):
    """GET: all roles. POST: a new one."""

    async def get(self) -> None:
        found = await self.directory.roles(await self.require())
        self.reply({"success": True, "roles": [role_json(role) for role in found]})

    async def post(self) -> None:
        caller = await self.require()
        body = self.body(_RoleBody)
        flags = [flag for flag in FLAGS if getattr(body, flag)]
        role = await self.directory.create_role(caller, _given(body.name), flags)
        self.reply({"success": True, "role": role_json(role)})


class RoleDoor(AccountDoor):
    """GET, PUT and DELETE one role."""

    async def get(self, role_id: str) -> None:
        caller = await self.require()
        self.reply({"success": True, "role": role_json(await self.directory.role(caller, _id(role_id, "Role")))})

    async def put(self, role_id: str) -> None:
        caller = await self.require()
        number = _id(role_id, "Role")
        body = self.body(_RoleBody)
        told = {flag: getattr(body, flag) for flag in FLAGS if getattr(body, flag) is not None}
        flags = None
        if told:
            known = (await self.directory.role(caller, number)).flags
            flags = (known | {flag for flag, on in told.items() if on}) - {flag for flag, on in told.items() if not on}
        role = await self.directory.edit_role(caller, number, name=body.name, flags=flags)
        self.reply({"success": True, "role": role_json(role)})

    async def delete(self, role_id: str) -> None:
        caller = await self.require()
        role = await self.directory.delete_role(caller, _id(role_id, "Role"))
        self.reply({"success": True, "role": role_json(role)})


# ------------------------------------------------------------------ groups


class Groups(AccountDoor):
    """GET: all groups. POST: a new one."""

    async def get(self) -> None:
        found = await self.directory.groups(await self.require())
        self.reply({"success": True, "groups": [group_json(group) for group in found]})

    async def post(self) -> None:
        caller = await self.require()
        group = await self.directory.create_group(caller, self.body(_Named).name)
        self.reply({"success": True, "group": group_json(group)})


class GroupDoor(AccountDoor):
    """GET, PUT and DELETE one group."""

    async def get(self, group_id: str) -> None:
        caller = await self.require()
        group = await self.directory.group(caller, _id(group_id, "Group"))
        self.reply({"success": True, "group": group_json(group)})

    async def put(self, group_id: str) -> None:
        caller = await self.require()
        name = self.body(_Named).name
        group = await self.directory.rename_group(caller, _id(group_id, "Group"), name)
        self.reply({"success": True, "group": group_json(group)})

    async def delete(self, group_id: str) -> None:
        caller = await self.require()
        group = await self.directory.delete_group(caller, _id(group_id, "Group"))
        self.reply({"success": True, "group": group_json(group)})


# ------------------------------------------------------------------ invites


class AcceptInvite(AccountDoor):
    """POST: an account and its first token, for a one-time invite, which is the credential here."""

    open_to_all = frozenset({"POST"})

    async def post(self) -> None:
        body = self.body(_Acceptance)
        account, token = await self.accounts.accept_invite(body.invite, body.username, body.password, self.origin)
        self.reply({"username": account.username, "role": account.role, "token": token})


def _id(text: str, what: str) -> int:
    if len(text) > 18:  # more digits than any id of the database has
        raise NotFound(f"{what} ID not found!")
    return int(text)


def _given(name: str | None) -> str:
    if name is None:
        raise BadRequest("Invalid JSON format. The body lacks the name.")
    return name


_USERS_AND_ROLES = [
    (r"/users/?", Users),
    (r"/users/login/?", UsersLogin),
    (r"/users/search/?", UsersSearch),
    (r"/users/([0-9]+)/?", User),
    (r"/users/([0-9]+)/(email|password|role|groups)/?", UserField),
    (r"/roles/?", Roles),
    (r"/roles/([0-9]+)/?", RoleDoor),
    (r"/invites/accept/?", AcceptInvite),
]
_GROUPS = [(r"/groups/?", Groups), (r"/groups/([0-9]+)/?", GroupDoor)]

NETWORK_ACCOUNT_RULES: list[tuple[str, type[Door]]] = list(_USERS_AND_ROLES)
NODE_ACCOUNT_RULES: list[tuple[str, type[Door]]] = [*_USERS_AND_ROLES, *_GROUPS]
