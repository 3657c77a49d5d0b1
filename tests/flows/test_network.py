"""Membership of a Network: joining, coming back, staying away, and who is refused. A real Network, real links."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator

import pytest
from network_world import HEARTBEAT_S, PATIENCE_S, FakeNode, NetworkProcess, call, until
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from grid_jupyter.link.peer import CONNECTING, JOINED, REFUSED
from grid_jupyter.wire.network import MAX_LINK_BYTES, Heartbeat, encode

BEAT = Heartbeat(address="http://127.0.0.1:3999", tags=0, datasets=0, models=0, cpu=0.0, memory=0.0)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetworkProcess]:
    process = NetworkProcess(tmp_path_factory.mktemp("network")).start()
    yield process
    process.stop()


@contextlib.asynccontextmanager
async def joined(network: NetworkProcess, name: str, **told: object) -> AsyncIterator[FakeNode]:
    await network.forget(name)
    node = FakeNode(name, network.address, invite=await network.node_invite(), **told)  # type: ignore[arg-type]
    await node.join()
    try:
        yield node
    finally:
        await node.leave()


def test_a_node_joins_by_invite_once_and_later_with_the_credential_that_it_got(network: NetworkProcess):
    async def flow() -> None:
        async with joined(network, "Bob") as bob:
            assert bob.credential is not None
            assert bob.credential.startswith("gjt1_")
            await until(lambda: listed(network, ["Bob"]))
        await until(lambda: listed(network, []))
        again = FakeNode("Bob", network.address, credential=bob.credential)
        await again.join()
        await until(lambda: listed(network, ["Bob"]))
        await again.leave()

    asyncio.run(flow())


def test_nodes_are_listed_in_order_of_joining(network: NetworkProcess):
    async def flow() -> None:
        async with joined(network, "James"), joined(network, "Alice"), joined(network, "Bill"), joined(network, "Bob"):
            await until(lambda: listed(network, ["James", "Alice", "Bill", "Bob"]))

    asyncio.run(flow())


def test_a_node_under_a_new_address_is_accepted_with_its_own_credential(network: NetworkProcess):
    async def flow() -> None:
        reader = await network.user("Ana")
        async with joined(network, "Bob") as bob:
            await until(lambda: listed(network, ["Bob"]))
        moved = FakeNode("Bob", network.address, credential=bob.credential, address="http://10.1.2.3:4000")
        await moved.join()
        await until(lambda: listed(network, ["Bob"]))
        _, found = await call(network.address, "GET", "/node/Bob", token=reader)
        assert found["address"] == "http://10.1.2.3:4000"
        moved.address = "http://10.1.2.4:4000"  # told by the next heartbeat, without joining again

        async def moved_on() -> bool:
            _, found = await call(network.address, "GET", "/node/Bob", token=reader)
            return bool(found["address"] == "http://10.1.2.4:4000")

        await until(moved_on)
        await moved.leave()

    asyncio.run(flow())


def test_a_stranger_with_a_taken_name_is_refused_and_spends_no_invite(network: NetworkProcess):
    async def flow() -> None:
        async with joined(network, "Bob"):
            stranger = FakeNode("Bob", network.address, invite=await network.node_invite())
            stranger.begin()
            assert await stranger.reached(REFUSED) == REFUSED
            assert stranger.membership is not None
            assert "already been registered" in stranger.membership.detail
            await stranger.leave()
            body = {"node-id": "Bob", "node-address": "http://127.0.0.1:1", "invite": stranger.invite}
            status, answer = await call(network.address, "POST", "/join", body)
            assert (status, answer["message"]) == (409, "This ID has already been registered")
            # the invite still lets one in, under a name that is free
            status, answer = await call(network.address, "POST", "/join", {**body, "node-id": "Free"})
            assert (status, answer["message"]) == (200, "Successfully Connected!")

    asyncio.run(flow())


def test_a_node_that_lost_its_credential_is_readmitted_by_an_invite_made_for_it(network: NetworkProcess):
    async def flow() -> None:
        async with joined(network, "Bob") as lost:
            pass
        other = await network.node_invite("Alice")
        body = {"node-id": "Bob", "node-address": "http://127.0.0.1:1", "invite": other}
        assert (await call(network.address, "POST", "/join", body))[0] == 403
        found = FakeNode("Bob", network.address, invite=await network.node_invite("Bob"))
        await found.join()
        assert found.credential != lost.credential
        status, _ = await call(network.address, "POST", "/join", body | {"invite": None}, token=lost.credential)
        assert status == 401  # the old one ended
        await found.leave()

    asyncio.run(flow())


def test_another_members_credential_does_not_take_a_name(network: NetworkProcess):
    async def flow() -> None:
        async with joined(network, "Bob"), joined(network, "Eve") as eve:
            body = {"node-id": "Bob", "node-address": "http://127.0.0.1:1"}
            status, _ = await call(network.address, "POST", "/join", body, token=eve.credential)
            assert status == 409
            status, _ = await call(network.address, "POST", "/join", {**body, "node-id": "New"}, token=eve.credential)
            assert status == 403

    asyncio.run(flow())


def test_joining_needs_an_invite_for_nodes(network: NetworkProcess):
    async def flow() -> None:
        body = {"node-id": "Nobody", "node-address": "http://127.0.0.1:1"}
        status, answer = await call(network.address, "POST", "/join", body)
        assert status == 401
        assert "invite" in answer["message"]
        status, _ = await call(network.address, "POST", "/join", {**body, "invite": "gji1_" + "x" * 43})
        assert status == 401
        for_a_person, _ = await network.owner.invite("User", 60.0)
        status, answer = await call(network.address, "POST", "/join", {**body, "invite": for_a_person})
        assert (status, "role Node" in answer["message"]) == (403, True)
        status, _ = await call(network.address, "POST", "/join", body, token=await network.user("Ana"))
        assert status == 403

    asyncio.run(flow())


def test_an_invite_lets_one_node_in_even_when_two_try_at_once(network: NetworkProcess):
    async def flow() -> None:
        invite = await network.node_invite()
        bodies = [{"node-id": name, "node-address": "http://127.0.0.1:1", "invite": invite} for name in ("One", "Two")]
        answers = await asyncio.gather(*(call(network.address, "POST", "/join", body) for body in bodies))
        assert sorted(status for status, _ in answers) == [200, 401]

    asyncio.run(flow())


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "file:///etc/passwd", "http://", "http://a b", "http://x/?token=1", "//h:1"]
)
def test_an_address_that_is_none_is_refused(network: NetworkProcess, address: str):
    async def flow() -> None:
        body = {"node-id": "Bob", "node-address": address, "invite": await network.node_invite()}
        status, _ = await call(network.address, "POST", "/join", body)
        assert status == 400

    asyncio.run(flow())


def test_nodes_join_again_by_themselves_when_a_killed_network_is_back(network: NetworkProcess):
    async def flow() -> None:
        async with joined(network, "Bob") as bob, joined(network, "Alice"):
            await until(lambda: listed(network, ["Bob", "Alice"]))
            network.kill()
            assert await bob.reached(CONNECTING) == CONNECTING
            network.start()
            assert await bob.reached(JOINED) == JOINED
            await until(lambda: listed(network, ["Bob", "Alice"]))

    asyncio.run(flow())


def test_a_node_that_was_struck_off_is_out_until_it_is_invited_again(network: NetworkProcess):
    async def flow() -> None:
        async with joined(network, "Bob") as bob:
            admin, reader = await network.user("Admin", "Administrator"), await network.user("Ana")
            body = {"node-id": "Bob", "node-address": bob.address}
            assert (await call(network.address, "DELETE", "/delete-node", body, token=reader))[0] == 403
            status, answer = await call(network.address, "DELETE", "/delete-node", body, token=admin)
            assert (status, answer["message"]) == (200, "Successfully Deleted!")
            assert "Bob" not in await network.connected()
            assert await bob.reached(REFUSED) == REFUSED
            status, answer = await call(network.address, "DELETE", "/delete-node", body, token=admin)
            assert (status, answer["message"]) == (409, "This ID was not found in connected nodes")
        async with joined(network, "Bob"):
            await until(lambda: listed(network, ["Bob"]))

    asyncio.run(flow())


def test_a_node_may_strike_itself_off_and_no_other(network: NetworkProcess):
    async def flow() -> None:
        async with joined(network, "Bob") as bob, joined(network, "Eve") as eve:
            body = {"node-id": "Bob"}
            assert (await call(network.address, "DELETE", "/delete-node", body, token=eve.credential))[0] == 403
            assert (await call(network.address, "DELETE", "/delete-node", body, token=bob.credential))[0] == 200
            await until(lambda: listed(network, ["Eve"]))

    asyncio.run(flow())


# ------------------------------------------------------------------ the link itself


def test_a_node_that_falls_silent_is_gone_after_two_heartbeats_though_its_link_is_open(network: NetworkProcess):
    async def flow() -> None:
        link = await opened(network, await registered(network, "Bob"))
        await until(lambda: beaten_and_listed(network, link, "Bob"))
        gone_after = await until(lambda: listed(network, []))
        assert gone_after < 2 * HEARTBEAT_S + 1.0  # the rest is the patience of a busy test machine
        assert await closed(link)  # and the Network gives the link up

    asyncio.run(flow())


def test_a_link_stays_open_while_both_sides_have_nothing_but_heartbeats_to_say(network: NetworkProcess):
    async def flow() -> None:
        async with joined(network, "Bob") as bob:
            assert bob.membership is not None
            before = bob.beats
            await until(lambda: beaten(bob, before + 8))  # well over the silence that would end it
            assert bob.membership.links == 1

    asyncio.run(flow())


async def beaten(node: FakeNode, count: int) -> bool:
    return node.beats >= count


def test_a_link_that_is_opened_but_never_beats_is_not_listed(network: NetworkProcess):
    async def flow() -> None:
        link = await opened(network, await registered(network, "Bob"))
        welcome = await link.read_message()
        assert json.loads(str(welcome))["type"] == "welcome"
        assert await network.connected() == []
        assert await closed(link)

    asyncio.run(flow())


def test_a_newer_link_of_a_node_takes_the_place_of_the_older(network: NetworkProcess):
    async def flow() -> None:
        token = await registered(network, "Bob")
        older = await opened(network, token)
        await until(lambda: beaten_and_listed(network, older, "Bob"))
        newer = await opened(network, token)
        assert await closed(older)
        await until(lambda: beaten_and_listed(network, newer, "Bob"))
        newer.close()
        assert await closed(newer)

    asyncio.run(flow())


@pytest.mark.parametrize(
    "frame",
    [
        "{",
        '{"type":"heartbeat"}',
        '{"type":"heartbeat","address":"javascript:1","tags":0,"datasets":0,"models":0,"cpu":0,"memory":0}',
        '{"type":"unheard-of"}',
        '{"type":"tags","id":1,"tags":[],"more":1}',
        "[" * 100_000,
        b"\x00\xff",
    ],
)
def test_a_frame_that_is_no_message_ends_the_link_and_the_network_goes_on(network: NetworkProcess, frame: str | bytes):
    async def flow() -> None:
        link = await opened(network, await registered(network, "Bob"))
        await link.write_message(frame, binary=isinstance(frame, bytes))
        assert await closed(link)
        assert link.close_reason
        async with joined(network, "Alice"):
            await until(lambda: listed(network, ["Alice"]))

    asyncio.run(flow())


def test_a_frame_over_the_limit_ends_the_link(network: NetworkProcess):
    async def flow() -> None:
        link = await opened(network, await registered(network, "Bob"))
        await link.write_message("x" * (MAX_LINK_BYTES + 1))
        assert await closed(link)
        assert await network.connected() == []

    asyncio.run(flow())


def test_only_a_member_opens_a_link_and_no_browser_does(network: NetworkProcess):
    async def flow() -> None:
        member = await registered(network, "Bob")
        refused = {401: {}, 403: bearer(await network.user("Ana"))}
        for status, headers in refused.items():
            with pytest.raises(HTTPClientError) as caught:
                await websocket_connect(HTTPRequest(link_url(network), headers=headers))
            assert caught.value.code == status
        headers = {**bearer(member), "Origin": network.address}
        with pytest.raises(HTTPClientError) as caught:
            await websocket_connect(HTTPRequest(link_url(network), headers=headers))
        assert caught.value.code == 403

    asyncio.run(flow())


async def registered(network: NetworkProcess, name: str) -> str:
    await network.forget(name)
    body = {"node-id": name, "node-address": "http://127.0.0.1:3999", "invite": await network.node_invite()}
    _, answer = await call(network.address, "POST", "/join", body)
    return str(answer["token"])


async def opened(network: NetworkProcess, token: str) -> WebSocketClientConnection:
    return await websocket_connect(HTTPRequest(link_url(network), headers=bearer(token)))


async def closed(link: WebSocketClientConnection) -> bool:
    while await asyncio.wait_for(link.read_message(), PATIENCE_S) is not None:
        pass
    link.close()
    return True


async def listed(network: NetworkProcess, names: list[str]) -> bool:
    return await network.connected() == names


async def beaten_and_listed(network: NetworkProcess, link: WebSocketClientConnection, name: str) -> bool:
    await link.write_message(encode(BEAT))
    return await network.connected() == [name]


def link_url(network: NetworkProcess) -> str:
    return network.address.replace("http", "ws", 1) + "/link"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}
