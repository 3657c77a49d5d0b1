"""Users, roles and groups: who may read and change what about whom, each refusal tried by somebody who may not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from grid_jupyter.errors import BadRequest, Conflict, Forbidden, IdNotUniqueError, NotAuthenticatedError, NotFound
from grid_jupyter.identity.accounts import Account, Accounts
from grid_jupyter.identity.directory import Directory
from grid_jupyter.store.accounts import AccountTable
from grid_jupyter.store.database import Database, sqlite_url

run = asyncio.run
USER, COMPLIANCE, ADMINISTRATOR, OWNER, PUBLISHER, NODE = range(1, 7)
"""Ids of the roles."""


@dataclass
class World:
    """A Node with one account of each kind."""

    accounts: Accounts
    bob: Account  # the first Owner
    second: Account  # another Owner
    admin: Account
    officer: Account
    ana: Account  # a User
    eve: Account  # a User

    @property
    def directory(self) -> Directory:
        return self.accounts.directory


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    database = Database(sqlite_url(tmp_path / "grid.db"))
    accounts = Accounts(AccountTable(database), "n", lambda: 1000.0)

    async def settle() -> World:
        await accounts.first_start()
        ana = await accounts.ensure("Ana", "User")
        return World(
            accounts,
            bob=await accounts.ensure("Bob", "Owner"),
            second=await accounts.ensure("Second", "Owner"),
            admin=await accounts.ensure("Admin", "Administrator"),
            officer=await accounts.ensure("Officer", "Compliance Officer"),
            ana=ana,
            eve=await accounts.ensure("Eve", "User"),
        )

    yield run(settle())
    database.close()


Call = Callable[[Directory, Account, World], Awaitable[object]]

NEEDS: dict[str, tuple[str, Call]] = {
    "users": ("can_triage_requests", lambda d, who, w: d.users(who)),
    "user": ("can_triage_requests", lambda d, who, w: d.user(who, w.ana.id)),
    "roles": ("can_triage_requests", lambda d, who, w: d.roles(who)),
    "role": ("can_triage_requests", lambda d, who, w: d.role(who, USER)),
    "groups": ("can_triage_requests", lambda d, who, w: d.groups(who)),
    "group": ("can_triage_requests", lambda d, who, w: d.group(who, 99)),
    "create_user": ("can_create_users", lambda d, who, w: d.create_user(who, "New", None)),
    "set_password": ("can_create_users", lambda d, who, w: d.set_password(who, w.ana.id, "new")),
    "set_username": ("can_create_users", lambda d, who, w: d.set_username(who, w.ana.id, "Anna")),
    "set_role": ("can_create_users", lambda d, who, w: d.set_role(who, w.ana.id, USER)),
    "set_groups": ("can_create_users", lambda d, who, w: d.set_groups(who, w.ana.id, [])),
    "delete_user": ("can_create_users", lambda d, who, w: d.delete_user(who, w.ana.id)),
    "create_role": ("can_edit_roles", lambda d, who, w: d.create_role(who, "Curator", [])),
    "edit_role": ("can_edit_roles", lambda d, who, w: d.edit_role(who, USER, flags=[])),
    "delete_role": ("can_edit_roles", lambda d, who, w: d.delete_role(who, 99)),
    "create_group": ("can_create_groups", lambda d, who, w: d.create_group(who, "lab")),
    "rename_group": ("can_create_groups", lambda d, who, w: d.rename_group(who, 99, "lab")),
    "delete_group": ("can_create_groups", lambda d, who, w: d.delete_group(who, 99)),
}


@pytest.mark.parametrize("name", NEEDS)
def test_each_call_is_refused_to_those_without_its_right(world: World, name: str) -> None:
    flag, call = NEEDS[name]
    for who in (world.bob, world.admin, world.officer, world.eve):
        if flag in who.flags:
            try:
                run(_await(call(world.directory, who, world)))
            except (NotFound, IdNotUniqueError):
                pass  # let through; an Owner before may have done it already
        else:
            with pytest.raises(Forbidden, match="User is not authorized for this operation!"):
                run(_await(call(world.directory, who, world)))


async def _await(call: Awaitable[object]) -> object:
    return await call


# ------------------------------------------------------------------ nobody raises anyone above themselves


def test_a_user_does_not_make_themselves_owner(world: World) -> None:
    for role_id in (OWNER, ADMINISTRATOR, PUBLISHER, NODE, USER):
        with pytest.raises(Forbidden):
            run(world.directory.set_role(world.eve, world.eve.id, role_id))


def test_an_administrator_gives_no_right_that_they_lack(world: World) -> None:
    for victim in (world.ana, world.admin):
        with pytest.raises(Forbidden, match="rights that you do not have"):
            run(world.directory.set_role(world.admin, victim.id, OWNER))
    with pytest.raises(Forbidden):
        run(world.directory.create_user(world.admin, "New", None, OWNER))
    assert run(world.directory.set_role(world.admin, world.ana.id, ADMINISTRATOR)).role == "Administrator"
    assert run(world.directory.create_user(world.admin, "New", None, COMPLIANCE)).role == "Compliance Officer"


def test_an_administrator_does_not_take_over_an_owner(world: World) -> None:
    for attempt in (
        world.directory.set_password(world.admin, world.second.id, "mine now"),
        world.directory.set_username(world.admin, world.second.id, "Ex"),
        world.directory.set_role(world.admin, world.second.id, USER),
        world.directory.set_groups(world.admin, world.second.id, []),
        world.directory.delete_user(world.admin, world.second.id),
    ):
        with pytest.raises(Forbidden):
            run(attempt)


def test_an_owner_demotes_another_owner_to_any_role(world: World) -> None:
    assert run(world.directory.set_role(world.bob, world.second.id, USER)).flags == frozenset()


def test_the_first_owner_stays_owner(world: World) -> None:
    for who in (world.bob, world.second):
        with pytest.raises(Forbidden, match="first Owner"):
            run(world.directory.set_role(who, world.bob.id, ADMINISTRATOR))
        with pytest.raises(Forbidden, match="first Owner"):
            run(world.directory.delete_user(who, world.bob.id))
    assert run(world.directory.set_role(world.bob, world.bob.id, OWNER)).role == "Owner"


def test_who_edits_roles_puts_no_right_into_one_that_they_lack(world: World) -> None:
    run(world.directory.create_role(world.bob, "Role keeper", ["can_edit_roles", "can_triage_requests"]))
    keeper = run(world.accounts.ensure("Keeper", "Role keeper"))
    with pytest.raises(Forbidden):
        run(world.directory.create_role(keeper, "Mine", ["can_upload_data"]))
    with pytest.raises(Forbidden):
        run(world.directory.edit_role(keeper, USER, flags=["can_create_users"]))
    with pytest.raises(Forbidden):
        run(world.directory.edit_role(keeper, ADMINISTRATOR, flags=[]))
    assert run(world.directory.edit_role(keeper, USER, flags=["can_triage_requests"])).flags == {"can_triage_requests"}


# ------------------------------------------------------------------ users


def test_everybody_looks_at_themselves(world: World) -> None:
    assert run(world.directory.user(world.eve, world.eve.id)) == world.eve


def test_users_are_found_by_what_is_exactly_theirs(world: World) -> None:
    def found(**query: object) -> list[str]:
        return [user.username for user in run(world.directory.users(world.officer, **query))]  # type: ignore[arg-type]

    lab = run(world.directory.create_group(world.bob, "lab"))
    run(world.directory.set_groups(world.bob, world.eve.id, [lab.id]))
    assert found() == ["Ana", "Bob", "Second", "Admin", "Officer", "Eve"]
    assert found(username="Ana") == ["Ana"]
    assert found(role_id=OWNER) == ["Bob", "Second"]
    assert found(group_id=lab.id, role_id=USER) == ["Eve"]
    for nothing in ("%", "An", "ana", "", "\ud800"):
        assert found(username=nothing) == []
    assert found(role_id=99) == found(group_id=10**30) == found(username="Ana", role_id=OWNER) == []


@pytest.mark.parametrize("id_", [0, -1, 99, 10**30])
def test_an_id_of_nobody_is_not_found(world: World, id_: int) -> None:
    directory, bob = world.directory, world.bob
    for user_call in (
        directory.user(bob, id_),
        directory.set_password(bob, id_, "x"),
        directory.set_username(bob, id_, "x"),
        directory.set_role(bob, id_, USER),
        directory.set_groups(bob, id_, []),
        directory.delete_user(bob, id_),
    ):
        with pytest.raises(NotFound, match="User ID not found!"):
            run(user_call)
    for role_call in (
        directory.role(bob, id_),
        directory.edit_role(bob, id_, name="x"),
        directory.delete_role(bob, id_),
        directory.set_role(bob, world.ana.id, id_),
        directory.create_user(bob, "x", None, id_),
    ):
        with pytest.raises(NotFound, match="Role ID not found!"):
            run(role_call)
    for group_call in (
        directory.group(bob, id_),
        directory.rename_group(bob, id_, "x"),
        directory.delete_group(bob, id_),
        directory.set_groups(bob, world.ana.id, [id_]),
    ):
        with pytest.raises(NotFound, match="Group ID not found!"):
            run(group_call)


def test_a_new_password_ends_the_tokens_of_the_old_one_and_no_others(world: World) -> None:
    run(world.directory.set_password(world.eve, world.eve.id, "old"))
    by_password = run(world.accounts.login("Eve", "old", "here"))
    given = run(world.accounts.issue_token("Eve", label="laptop"))
    run(world.directory.set_password(world.eve, world.eve.id, "new"))
    with pytest.raises(NotAuthenticatedError):
        run(world.accounts.identify(by_password, "here"))
    assert run(world.accounts.identify(given, "here")).username == "Eve"
    with pytest.raises(NotAuthenticatedError):
        run(world.accounts.login("Eve", "old", "here"))
    assert run(world.accounts.login("Eve", "new", "here"))


def test_nobody_takes_a_name_that_data_may_be_readable_by(world: World) -> None:
    with pytest.raises(Forbidden):
        run(world.directory.set_username(world.eve, world.eve.id, "Carol"))
    run(world.directory.set_username(world.bob, world.ana.id, "Anna"))
    run(world.directory.delete_user(world.bob, world.admin.id))
    for taken in ("Ana", "Admin", "Anna"):
        with pytest.raises(IdNotUniqueError):
            run(world.directory.set_username(world.bob, world.eve.id, taken))
        with pytest.raises(IdNotUniqueError):
            run(world.directory.create_user(world.bob, taken, None))
        code, _ = run(world.accounts.invite("User", 60.0))
        with pytest.raises(IdNotUniqueError):
            run(world.accounts.accept_invite(code, taken, None, "here"))


def test_a_renamed_user_keeps_their_credentials(world: World) -> None:
    token = run(world.accounts.issue_token("Ana"))
    assert run(world.directory.set_username(world.bob, world.ana.id, "Ana")).username == "Ana"
    run(world.directory.set_username(world.bob, world.ana.id, "Anna"))
    assert run(world.accounts.identify(token, "here")).username == "Anna"
    assert "Ana" not in [user.username for user in run(world.directory.users(world.bob))]


def test_a_deleted_user_is_gone_from_everywhere(world: World) -> None:
    lab = run(world.directory.create_group(world.bob, "lab"))
    run(world.directory.set_groups(world.bob, world.eve.id, [lab.id]))
    token = run(world.accounts.issue_token("Eve"))
    assert run(world.directory.delete_user(world.eve, world.eve.id)).username == "Eve"
    with pytest.raises(NotAuthenticatedError):
        run(world.accounts.identify(token, "here"))
    with pytest.raises(NotFound):
        run(world.directory.user(world.bob, world.eve.id))
    with pytest.raises(NotFound):
        run(world.accounts.issue_token("Eve"))
    assert run(world.directory.users(world.bob, group_id=lab.id)) == ()


def test_the_owner_of_the_node_brings_a_deleted_user_back_without_what_they_had(world: World) -> None:
    run(world.directory.set_password(world.eve, world.eve.id, "old"))
    token = run(world.accounts.issue_token("Eve"))
    run(world.directory.delete_user(world.bob, world.eve.id))
    back = run(world.accounts.ensure("Eve", "Publisher"))
    assert (back.id, back.role, back.groups) == (world.eve.id, "Publisher", ())
    with pytest.raises(NotAuthenticatedError):
        run(world.accounts.identify(token, "here"))
    with pytest.raises(NotAuthenticatedError):
        run(world.accounts.login("Eve", "old", "here"))


# ------------------------------------------------------------------ roles and groups


def test_a_role_is_made_edited_and_deleted(world: World) -> None:
    directory, bob = world.directory, world.bob
    curator = run(directory.create_role(bob, "Curator", ["can_upload_data"]))
    assert run(directory.role(bob, curator.id)) == curator
    changed = run(directory.edit_role(bob, curator.id, name="Keeper", flags=["can_triage_requests"]))
    assert (changed.name, changed.flags) == ("Keeper", frozenset({"can_triage_requests"}))
    run(directory.set_role(bob, world.eve.id, curator.id))
    assert run(directory.user(bob, world.eve.id)).flags == {"can_triage_requests"}
    with pytest.raises(Conflict, match="another one first"):
        run(directory.delete_role(bob, curator.id))
    run(directory.delete_user(bob, world.eve.id))  # a deleted user holds up no role
    assert run(directory.delete_role(bob, curator.id)) == changed
    assert curator.id not in [role.id for role in run(directory.roles(bob))]
    assert run(directory.create_role(bob, "Another", [])).id > curator.id
    assert run(world.accounts.ensure("Eve", "User")).role == "User"


def test_roles_of_the_first_start_keep_their_names_and_an_owner_every_right(world: World) -> None:
    for role_id in (USER, OWNER, NODE):
        with pytest.raises(Conflict):
            run(world.directory.edit_role(world.bob, role_id, name="Other"))
        with pytest.raises(Conflict):
            run(world.directory.delete_role(world.bob, role_id))
    with pytest.raises(Forbidden):
        run(world.directory.edit_role(world.bob, OWNER, flags=[]))
    run(world.accounts.first_start())
    assert run(world.directory.edit_role(world.bob, PUBLISHER, flags=[])).flags == frozenset()


def test_an_unknown_right_and_a_taken_or_unfit_name_are_refused(world: World) -> None:
    directory, bob = world.directory, world.bob
    run(directory.create_group(bob, "lab"))
    for bad in (
        directory.create_role(bob, "New", ["can_fly"]),
        directory.edit_role(bob, USER, flags=["password_hash"]),
        directory.create_role(bob, "", []),
        directory.create_group(bob, " lab"),
        directory.set_username(bob, world.eve.id, ""),
        directory.create_user(bob, "", None),
    ):
        with pytest.raises(BadRequest):
            run(bad)
    other = run(directory.create_group(bob, "other"))
    curator = run(directory.create_role(bob, "Curator", []))
    for taken in (
        directory.create_role(bob, "User", []),
        directory.edit_role(bob, curator.id, name="User"),
        directory.create_group(bob, "lab"),
        directory.rename_group(bob, other.id, "lab"),
        directory.set_username(bob, world.eve.id, "Ana"),
    ):
        with pytest.raises(IdNotUniqueError):
            run(taken)


def test_a_group_is_made_renamed_and_deleted_and_its_members_stay(world: World) -> None:
    directory, bob = world.directory, world.bob
    lab, ward = run(directory.create_group(bob, "lab")), run(directory.create_group(bob, "ward"))
    assert run(directory.set_groups(bob, world.ana.id, [ward.id, lab.id, lab.id])).groups == ("lab", "ward")
    run(directory.rename_group(bob, lab.id, "laboratory"))
    assert run(directory.group(bob, lab.id)).name == "laboratory"
    assert run(directory.user(bob, world.ana.id)).groups == ("laboratory", "ward")
    assert run(directory.delete_group(bob, lab.id)).name == "laboratory"
    assert run(directory.user(bob, world.ana.id)).groups == ("ward",)
    assert [group.name for group in run(directory.groups(bob))] == ["ward"]
