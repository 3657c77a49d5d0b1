"""Values that go from one Node straight to another: both gates must agree, and who may read them stays the same."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import SECRETS, World
from node_world import PATIENCE_S, GridProcess, until
from raw_session import RawSession

from grid_jupyter import NodeClient, TorchHook, VirtualWorker
from grid_jupyter.errors import (
    BadRequest,
    Forbidden,
    GetNotPermittedError,
    GridError,
    InvalidMessageError,
    LimitExceededError,
    NodeUnavailableError,
    NotAuthenticatedError,
    ObjectNotFoundError,
)
from grid_jupyter.ops.raw import to_bytes
from grid_jupyter.tensors.remote import RemoteTensor, point, send
from grid_jupyter.wire import messages
from grid_jupyter.wire.messages import Expect, Expected, Move, Moved

Connect = Callable[..., NodeClient]
Intrude = Callable[..., RawSession]


@pytest.fixture(scope="module")
def carol(world: World, network: GridProcess) -> GridProcess:
    """Carol's Node, of the same Network as Bob's. Users Carol and Ana; guests may compute."""
    invite = network.owner("POST", "/owner/invites", {"role": "Node", "expires_s": 600.0})["invite"]
    node = world.start("node", "Carol", "--allow-guests", "--network", network.address, "--invite", invite)
    for name, role in (("Carol", "Owner"), ("Ana", "User")):
        node.user(name, role)
    until(lambda: node.status()["network"]["state"] == "joined")
    return node


@pytest.fixture(scope="module")
def secrets(bob: GridProcess) -> Iterator[messages.DatasetInfo]:
    """Bob's data, which Ana may read."""
    with bob.client("Bob") as owner:
        made = owner.publish(SECRETS, tags=["#moving"], allowed_users=["Ana"])
        yield made._ref.dataset
        owner.unpublish(made)


def move(pointer: RemoteTensor, target: NodeClient, **options: Any) -> tuple[RemoteTensor, tuple[str, ...] | None]:
    reference, readers = pointer._ref.session.move_to(
        pointer._ref.id, target.session, pointer.dtype, tuple(pointer.shape), **options
    )
    return point(pointer._layout, reference), readers


# ------------------------------------------------------------------ allowed


@pytest.mark.parametrize("length", [5, 300_000])
def test_a_value_goes_straight_to_another_node(bob: GridProcess, carol: GridProcess, connect: Connect, length: int):
    here, there = connect(bob), connect(carol)
    values = torch.arange(float(length))
    moved, readers = move(send(values, here.session) * 2, there)
    assert readers is None
    assert (moved + 1).get().equal(values * 2 + 1)


def test_a_value_without_elements_moves_as_well(bob: GridProcess, carol: GridProcess, connect: Connect):
    moved, _ = move(send(torch.zeros(3, 0), connect(bob).session), connect(carol))
    assert moved.get().shape == (3, 0)


def test_a_moved_value_is_gone_here_only_if_that_was_asked(bob: GridProcess, carol: GridProcess, connect: Connect):
    here, there = connect(bob), connect(carol)
    copied, moved = send(torch.ones(3), here.session), send(torch.ones(3), here.session)
    move(copied, there)
    move(moved, there, remove=True)
    assert copied.get().tolist() == [1, 1, 1]
    with pytest.raises(ObjectNotFoundError):
        moved.get()


def test_between_two_sessions_of_one_node_no_network_is_needed(alice: GridProcess, connect: Connect):
    for length in (5, 300_000):
        moved, _ = move(send(torch.ones(length), connect(alice, "Ana").session), connect(alice, "Ana"))
        assert moved.sum().get() == length


def test_a_nodes_owner_may_name_further_nodes(world: World, alice: GridProcess, connect: Connect):
    lone = world.start("node", "Lone", "--peer", f"{alice.address}/")
    lone.user("Ana")
    moved, _ = move(send(torch.ones(3), connect(lone, "Ana").session), connect(alice, "Ana"))
    assert moved.get().tolist() == [1, 1, 1]


# ------------------------------------------------------------------ who may read stays the same


def test_whoever_may_read_a_private_value_may_move_it_and_its_readers_go_along(
    bob: GridProcess, carol: GridProcess, connect: Connect, secrets: messages.DatasetInfo
):
    here, there = connect(bob, "Ana"), connect(carol, "Ana")
    [pointer] = here.search("#moving")
    moved, readers = move(pointer, there)
    assert set(readers or ()) == {"Bob", "Ana"}
    fetched = (moved * 2).get()
    assert fetched.allowed_users == readers
    assert fetched.unwrap().equal(SECRETS * 2)


def test_a_guest_cannot_move_what_a_guest_cannot_read(
    bob: GridProcess, carol: GridProcess, connect: Connect, secrets: messages.DatasetInfo
):
    here, there = connect(bob), connect(carol)
    [pointer] = here.search("#moving")
    for derived in (pointer, pointer.sum(), pointer * 0, send(torch.zeros(3), here.session) + pointer[0]):
        with pytest.raises(GetNotPermittedError):
            move(derived, there)
        with pytest.raises(GetNotPermittedError):
            move(derived, connect(bob))  # nor into another session of the same Node
    assert there.session.link.request(messages.Status())[0].values == 0


def test_a_credential_for_one_call_moves_the_value_and_does_not_open_it_there(
    bob: GridProcess, carol: GridProcess, connect: Connect, secrets: messages.DatasetInfo
):
    here, there = connect(bob), connect(carol)  # a guest, who holds Ana's credential
    [pointer] = here.search("#moving")
    moved, readers = move(pointer, there, user="Ana")
    assert set(readers or ()) == {"Bob", "Ana"}
    for derived in (moved, moved.mean(), moved * 0):
        with pytest.raises(GetNotPermittedError, match="Node Bob"):
            derived.get()
        with pytest.raises(GetNotPermittedError, match="Node Bob"):
            move(derived, here)  # a way back is no way around
    assert moved.get(user="Ana", deregister_ptr=False).unwrap().equal(SECRETS)


def test_in_another_session_of_the_same_node_the_owners_word_of_the_day_holds(bob: GridProcess, connect: Connect):
    owner = connect(bob, "Bob")
    made = owner.publish(SECRETS + 1, tags=["#inside"], allowed_users=["Ana"])
    here, there = connect(bob, "Ana"), connect(bob, "Ana")
    [pointer] = here.search("#inside")
    moved, _ = move(pointer + 1, there)
    assert (moved - 1).get().unwrap().equal(SECRETS + 1)
    owner.edit(made, allowed_users=[])
    with pytest.raises(GetNotPermittedError):
        moved.get()
    owner.unpublish(made)
    with pytest.raises(GridError, match="unpublished"):
        moved.get()


# ------------------------------------------------------------------ refused


def test_a_node_hands_values_to_nodes_that_its_owner_knows_only(bob: GridProcess, alice: GridProcess, connect: Connect):
    mine = send(torch.ones(3), connect(bob).session)
    with pytest.raises(Forbidden, match="--peer"):
        move(mine, connect(alice, "Ana"))
    with pytest.raises(Forbidden, match="--peer"):
        move(send(torch.ones(3), connect(alice, "Ana").session), connect(bob))
    assert mine.get().tolist() == [1, 1, 1]


def test_no_address_of_the_callers_choice_is_ever_called(bob: GridProcess, intrude: Intrude):
    raw = intrude(bob)
    value = raw.put(torch.ones(3))
    with socket.create_server(("127.0.0.1", 0)) as inside:
        inside.settimeout(0.3)
        where = f"http://127.0.0.1:{inside.getsockname()[1]}"
        for node in ("", "Bob", "Nobody", where, "x" * 5000):
            with pytest.raises(GridError):
                raw.ask(Move(value=value, node=node, address=where, ticket="a.b"))
        with pytest.raises(TimeoutError):
            inside.accept()


def test_a_value_goes_only_to_who_gave_out_the_ticket(world: World, alice: GridProcess, intrude: Intrude):
    """Something else listens at an address that is allowed: it is asked for a proof, and gets nothing more."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as other:

        def serve() -> None:
            while True:
                try:
                    connection, _ = other.accept()
                except OSError:
                    return
                with connection:
                    heard.append(connection.recv(65536))
                    body = b'{"proof": "' + b"0" * 64 + b'"}'
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        address = f"http://127.0.0.1:{other.getsockname()[1]}"
        wary = world.start("node", "Wary", "--peer", address, "--allow-guests")
        raw = intrude(wary)
        with pytest.raises(NodeUnavailableError, match="nothing was sent"):
            raw.ask(Move(value=raw.put(torch.ones(3)), node="x", address=address, ticket="abcdefgh.a-secret"))
        other.shutdown(socket.SHUT_RDWR)
    serving.join(PATIENCE_S)
    assert len(heard) == 1
    assert heard[0].startswith(b"GET /data-centric/moved/abcdefgh?challenge=")
    assert b"a-secret" not in heard[0]


def _expect(raw: RawSession, value: int, shape: tuple[int, ...] = (3,)) -> Expected:
    reply = raw.ask(Expect(value=value, dtype="float32", shape=shape))
    assert isinstance(reply, Expected)
    return reply


def _move(raw: RawSession, value: int, to: Expected) -> messages.Reply:
    return raw.ask(Move(value=value, node=to.node, address=to.address, ticket=to.ticket))


def test_a_ticket_is_good_once_and_for_what_it_was_made(bob: GridProcess, carol: GridProcess, intrude: Intrude):
    source, target = intrude(bob), intrude(carol)
    value = source.put(torch.ones(3))
    ticket = _expect(target, 1)
    assert isinstance(_move(source, value, ticket), Moved)
    assert target.read(1).tolist() == [1, 1, 1]
    with pytest.raises(NotAuthenticatedError):
        _move(source, value, ticket)
    for other in (torch.ones(4), torch.ones(3, dtype=torch.float64), torch.ones(3, 1)):
        ticket = _expect(target, 2)
        with pytest.raises(InvalidMessageError, match="ticket is for"):
            _move(source, source.put(other), ticket)
        with pytest.raises(ObjectNotFoundError):
            target.read(2)
    numbered = _expect(target, 3)
    forged = messages.Expected(ticket=numbered.ticket.split(".")[0] + ".x", node=numbered.node, address="")
    with pytest.raises(NodeUnavailableError, match="nothing was sent"):
        _move(source, value, forged)


def test_a_ticket_ends_with_its_session(bob: GridProcess, carol: GridProcess, intrude: Intrude):
    source, target = intrude(bob), intrude(carol)
    ticket = _expect(target, 1)
    target.socket.close()

    def is_refused() -> bool:
        try:
            _move(source, source.put(torch.ones(4)), ticket)
        except NotAuthenticatedError:
            return True
        except InvalidMessageError:  # the wrong form: the Node did not see the end of the session yet
            return True
        return False

    until(is_refused)
    with pytest.raises(NotAuthenticatedError):
        _move(source, source.put(torch.ones(3)), ticket)


def test_tickets_of_one_session_are_not_endless(carol: GridProcess, intrude: Intrude):
    raw = intrude(carol)
    for number in range(64):
        _expect(raw, number + 1)
    with pytest.raises(LimitExceededError, match="64"):
        _expect(raw, 65)


def test_what_is_larger_than_the_session_there_is_refused(bob: GridProcess, world: World, network: GridProcess):
    invite = network.owner("POST", "/owner/invites", {"role": "Node", "expires_s": 600.0})["invite"]
    tiny = world.start(
        "node", "Tiny", "--allow-guests", "--session-memory", "64M", "--network", network.address, "--invite", invite
    )
    until(lambda: tiny.status()["network"]["state"] == "joined")
    with bob.client() as here, tiny.client() as there:
        with pytest.raises(LimitExceededError):
            move(send(torch.zeros(1), here.session).expand(20 << 20).contiguous(), there)
        moved, _ = move(send(torch.ones(3), here.session), there)
        assert moved.get().tolist() == [1, 1, 1]


def test_the_door_for_moved_values_takes_no_nonsense(carol: GridProcess, intrude: Intrude):
    raw = intrude(carol)
    number, secret = _expect(raw, 1).ticket.split(".")
    where = f"/data-centric/moved/{number}"
    good = {
        "X-Grid-Ticket": secret, "X-Grid-Form": '["float32", [3]]', "X-Grid-Readers": "null", "X-Grid-Origin": "x",
    }  # fmt: skip
    body = bytes(to_bytes(torch.ones(3)))
    for name, text in (
        ("X-Grid-Form", "[]"), ("X-Grid-Form", '["float32", [3'), ("X-Grid-Readers", '[""]'), ("X-Grid-Readers", "7"),
        ("X-Grid-Readers", json.dumps(["a"] * 1001)), ("X-Grid-Origin", ""), ("X-Grid-Origin", "%0a"),
        ("X-Grid-Origin", "x" * 200),
    ):  # fmt: skip
        assert carol.call("PUT", where, body, headers={**good, name: text})[0] == 400, (name, text)
    assert carol.call("PUT", where, body)[0] == 401
    assert carol.call("PUT", where, body, headers={**good, "X-Grid-Ticket": "x"})[0] == 401
    assert carol.call("GET", where)[0] == 400
    assert carol.call("GET", f"{where}?challenge={'0' * 31}g")[0] == 400
    assert carol.call("GET", f"/data-centric/moved/unknown?challenge={'0' * 32}")[0] == 401
    assert carol.call("PUT", where, body, headers=good)[0] == 200
    assert raw.read(1).tolist() == [1, 1, 1]


def test_a_value_that_comes_with_readers_is_never_taken_for_the_clients_own(carol: GridProcess, intrude: Intrude):
    raw = intrude(carol)
    number, secret = _expect(raw, 1).ticket.split(".")
    head = (
        f"PUT /data-centric/moved/{number} HTTP/1.1\r\nHost: x\r\nX-Grid-Ticket: {secret}\r\nContent-Length: 12\r\n"
        'X-Grid-Form: ["float32", [3]]\r\nX-Grid-Readers: ["Ana"]\r\nX-Grid-Origin: x\r\n\r\n'
    )
    own = {"X-Grid-Session": raw.secret}

    def come() -> int:
        return carol.call("HEAD", "/data-centric/values/1", headers=own)[0]

    with socket.create_connection(("127.0.0.1", carol.port), PATIENCE_S) as sender:
        sender.sendall(head.encode() + bytes(to_bytes(torch.ones(3)))[:8])
        until(lambda: come() == 200)
        for offset in (8, 0):
            told = {**own, "Upload-Offset": str(offset)}
            for where in ("values", "jobs/rounds"):
                assert carol.call("PATCH", f"/data-centric/{where}/1", bytes(12 - offset), headers=told)[0] == 404
    with pytest.raises(ObjectNotFoundError):
        raw.read(1)


# ------------------------------------------------------------------ the verbs of a pointer


def test_the_verbs_of_a_pointer_take_its_value_from_node_to_node(
    bob: GridProcess, carol: GridProcess, connect: Connect, hook: TorchHook
):
    here, there = connect(bob, "Ana"), connect(carol, "Ana")
    pointer: Any = torch.tensor([1.0, 2.0, 3.0]).requires_grad_().send(here)  # type: ignore[attr-defined]
    assert here.count() == 1
    assert pointer.move(there) is pointer
    assert pointer.location is there
    assert here.count() == 0
    (pointer * 2).sum().backward()
    back = pointer.get()
    assert back.grad.tolist() == [2, 2, 2]
    pointer = torch.tensor([1.0, 2.0]).send(here)  # type: ignore[attr-defined]
    assert pointer.remote_send(there).location is here, "a chain: here holds the pointer, there has the value"
    assert [here.count(), (pointer + 1).get().location] == [0, there]
    assert pointer.remote_get().location is here
    assert pointer.get().tolist() == [1, 2]
    worker = VirtualWorker(hook, id="here")
    assert torch.ones(2).send(worker).move(there).get().tolist() == [1, 1]  # type: ignore[attr-defined]


def test_a_moved_pointer_tells_that_its_value_has_other_readers(
    bob: GridProcess, carol: GridProcess, secrets: messages.DatasetInfo, connect: Connect
):
    here, there, stranger = connect(bob, "Ana"), connect(carol, "Ana"), connect(bob, "Zed")
    moved: Any = (here.search("#moving")[0][0] + 1).move(there)
    assert "May be read by: whom the owners of all its sources named" in str(moved)
    assert moved.get().allowed_users == ("Ana", "Bob")
    with pytest.raises(GetNotPermittedError):
        (stranger.search("#moving")[0] + 1).move(there)
    with pytest.raises(BadRequest, match="stays where it is"):
        here.search("#moving")[0].move(there)


def test_a_move_that_is_refused_leaves_the_pointer_as_it_was(bob: GridProcess, alice: GridProcess, connect: Connect):
    pointer: Any = torch.tensor([1, 2]).send(connect(bob, "Ana"))  # type: ignore[attr-defined]
    with pytest.raises(GridError):
        pointer.move(connect(alice, "Ana"))
    assert pointer.get().tolist() == [1, 2]
