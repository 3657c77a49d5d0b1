"""Who may join a Network under which name, and who may strike a Node off: the pure rules."""

from __future__ import annotations

import pytest

from grid_jupyter.errors import BadRequest, Conflict, Forbidden, NotAuthenticatedError
from grid_jupyter.identity.accounts import Account
from grid_jupyter.identity.roles import SEEDED
from grid_jupyter.network.registry import Admission, Registered, admit, check_address, check_node, may_forget

BOB = Registered(id="b", name="Bob", address="http://h:1", account_id=7, joined=0.0, last_seen=0.0)


def account(number: int, role: str = "Node") -> Account:
    return Account(id=number, username=f"u{number}", role=role, flags=SEEDED[role], groups=())


def test_a_newcomer_needs_an_invite():
    assert admit("Bob", None, None, invited=True) is Admission.REGISTER
    with pytest.raises(NotAuthenticatedError, match="invite"):
        admit("Bob", None, None, invited=False)


def test_a_known_node_comes_back_by_its_own_credential_with_or_without_an_invite():
    assert admit("Bob", BOB, account(7), invited=False) is Admission.RETURN
    assert admit("Bob", BOB, account(7), invited=True) is Admission.RETURN


@pytest.mark.parametrize(("caller", "invited"), [(None, True), (account(8), False), (account(8, "Owner"), True)])
def test_a_taken_name_is_refused_to_strangers(caller: Account | None, invited: bool):
    with pytest.raises(Conflict, match="This ID has already been registered"):
        admit("Bob", BOB, caller, invited=invited)


def test_a_stranger_without_anything_learns_nothing_of_a_taken_name():
    with pytest.raises(NotAuthenticatedError):
        admit("Bob", BOB, None, invited=False)


def test_a_credential_alone_registers_no_name():
    with pytest.raises(Forbidden):
        admit("New", None, account(8), invited=False)


def test_an_invite_that_was_made_for_one_node_admits_that_one_also_when_it_is_known():
    assert admit("Bob", None, None, invited=True, reserved_for="Bob") is Admission.REGISTER
    assert admit("Bob", BOB, None, invited=True, reserved_for="Bob") is Admission.READMIT
    assert admit("Bob", BOB, account(7), invited=True, reserved_for="Bob") is Admission.RETURN
    for known in (None, BOB):
        with pytest.raises(Forbidden, match="another name"):
            admit("Bob", known, None, invited=True, reserved_for="Eve")


def test_a_node_is_struck_off_by_itself_or_by_who_runs_the_network():
    assert may_forget(BOB, account(7))
    assert may_forget(BOB, account(1, "Owner"))
    assert may_forget(BOB, account(1, "Administrator"))
    assert not may_forget(BOB, account(8))
    assert not may_forget(BOB, account(8, "Compliance Officer"))
    assert not may_forget(None, account(8))


@pytest.mark.parametrize("address", ["http://127.0.0.1:3000", "https://node.example.org", "http://[::1]:3000/base"])
def test_addresses_of_nodes(address: str):
    check_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "127.0.0.1:3000",
        "javascript:alert(1)",
        "ftp://h",
        "http://",
        "http://h:0",
        "http://h:99999",
        "http://h/<b>",
        "http://user:secret@h",
        "http://h/#x",
        "http://h/\n",
        "http://" + "h" * 600,
    ],
)
def test_what_is_no_address_of_a_node(address: str):
    with pytest.raises(BadRequest, match="address"):
        check_address(address)


@pytest.mark.parametrize("name", ["", " Bob", "Bo\nb", "B" * 101, "Ｂob"])
def test_what_is_no_name_of_a_node(name: str):
    with pytest.raises(BadRequest):
        check_node(name, "http://h:1")
