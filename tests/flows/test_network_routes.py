"""The Network's routes: 0.2.9's shapes with real status codes, closed to strangers, unharmed by bad input."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from network_world import FakeNode, NetworkProcess, call, until
from tornado.routing import PathMatches
from tornado.web import RequestHandler

from grid_jupyter.identity.accounts import Accounts
from grid_jupyter.network.registry import Registry
from grid_jupyter.network.service import GridNetwork
from grid_jupyter.server.door import MAX_BODY_BYTES, MAX_JSON_BYTES
from grid_jupyter.server.network_door import network_application
from grid_jupyter.store.accounts import AccountTable
from grid_jupyter.store.database import Database, sqlite_url
from grid_jupyter.wire.network import DatasetTags, HostedModel

PATIENT_S = 2.0
"""The Network's heartbeat here: Nodes beat faster, so none drops out of a list when the machine is busy."""
FEBRUARY = DatasetTags(id=1, tags=("#February", "#birth-records"))
MARCH = DatasetTags(id=2, tags=("#March", "#birth-records"))

OPEN = {
    ("GET", "/"),
    ("GET", "/identity/?"),
    ("GET", "/status/?"),
    ("GET", "/connected-nodes/?"),
    ("GET", "/search-available-tags/?"),
}
CREDENTIAL_IN_THE_BODY = {
    ("POST", "/join/?"): {"node-id": "Bob", "node-address": "http://h:1", "invite": "gji1_" + "x" * 43},
    ("POST", "/users/login/?"): {"email": "Ana", "password": "wrong"},
    ("POST", "/invites/accept/?"): {"invite": "gji1_" + "x" * 43, "username": "Ana"},
}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetworkProcess]:
    process = NetworkProcess(
        tmp_path_factory.mktemp("network"), ("--name", "Ward", "--replicas", "2"), PATIENT_S
    ).start()
    yield process
    process.stop()


@pytest.fixture
def other_network(tmp_path: Path) -> Iterator[NetworkProcess]:
    process = NetworkProcess(tmp_path / "network", ("--allow-guests",), PATIENT_S).start()
    yield process
    process.stop()


def every_route(tmp_path: Path) -> list[tuple[str, str]]:
    """Method and path pattern of whatever the application answers to, as the application itself has it."""
    database = Database(sqlite_url(tmp_path / "grid.db"))
    accounts = Accounts(AccountTable(database), "0")
    network = GridNetwork("N", registry=Registry(database), accounts=accounts)
    app = network_application(network, accounts, allow_guests=False)
    database.close()
    found = []
    for rule in app.wildcard_router.rules:
        assert isinstance(rule.matcher, PathMatches)
        for method in RequestHandler.SUPPORTED_METHODS:
            if getattr(rule.target, method.lower()) is not RequestHandler._unimplemented_method:
                found.append((method, rule.matcher.regex.pattern.rstrip("$")))  # noqa: PERF401
    return found


def example_of(pattern: str) -> str:
    path = pattern.replace("/?", "").replace("([0-9]+)", "1").replace("([^/]+)", "Bob")
    return re.sub(r"\((\w+)\|[^)]*\)", r"\1", path) or "/"


def test_every_route_refuses_who_has_no_credential(network: NetworkProcess, tmp_path: Path):
    async def flow() -> None:
        routes = every_route(tmp_path)
        assert len(routes) >= 30
        for method, pattern in routes:
            body = CREDENTIAL_IN_THE_BODY.get((method, pattern), {"query": [], "node-id": "Bob"})
            status, answer = await call(network.address, method, example_of(pattern), body)
            if (method, pattern) in OPEN:
                assert status == 200, (method, pattern, answer)
            else:
                assert status == 401, (method, pattern, answer)
                assert answer["code"] == "not-authenticated"

    asyncio.run(flow())


def test_every_route_refuses_a_wrong_credential_also_those_open_to_all(network: NetworkProcess, tmp_path: Path):
    async def flow() -> None:
        right = await network.user("Ana")
        wrong = right[:-3] + ("abc" if not right.endswith("abc") else "xyz")
        for method, pattern in every_route(tmp_path):
            status, _ = await call(network.address, method, example_of(pattern), {}, token=wrong)
            assert status == 401, (method, pattern)
            # a right one in between, or the lock-out would answer instead
            assert (await call(network.address, "GET", "/status/", token=right))[0] == 200

    asyncio.run(flow())


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer gjt1_other_" + "x" * 43},
        {"Authorization": "token " + "0" * 48},  # Jupyter's
        {"Authorization": "Basic QW5hOnNlY3JldA=="},
        {"token": "justasecretkeythatishouldputhere"},
    ],
)
def test_a_wrong_credential_gets_401_with_the_remedy(network: NetworkProcess, headers: dict[str, str]):
    async def flow() -> None:
        status, answer = await call(network.address, "GET", "/datasets", headers=headers)
        assert status == 401
        assert len(answer["error"]) > 40
        right = await network.user("Ana")
        assert (await call(network.address, "GET", "/datasets", headers={"token": right}))[0] == 200
        await network.owner.revoke("Ana")
        assert (await call(network.address, "GET", "/datasets", token=right))[0] == 401
        again = await network.user("Ana")
        assert (await call(network.address, "GET", "/datasets", token=again))[0] == 200

    asyncio.run(flow())


def test_what_is_open_to_anyone_has_the_shapes_of_old(network: NetworkProcess):
    async def flow() -> None:
        assert await call(network.address, "GET", "/identity/") == (200, {"success": True, "identity": "Ward"})
        assert await call(network.address, "GET", "/status/") == (200, {"success": True, "status": "OpenGrid"})
        assert await call(network.address, "GET", "/connected-nodes") == (200, {"grid-nodes": []})
        assert await call(network.address, "GET", "/search-available-tags") == (200, [])
        status, card = await call(network.address, "GET", "/")
        assert status == 200
        assert "Open Grid Network" in card

    asyncio.run(flow())


def test_search_is_a_true_and_in_the_order_of_joining(network: NetworkProcess):
    async def flow() -> None:
        token = await network.user("Ana")
        nodes = [
            await member(network, "Bob", datasets=(FEBRUARY, MARCH), address="http://127.0.0.1:3000"),
            await member(network, "Alice", datasets=(MARCH,), address="http://127.0.0.1:3001"),
        ]

        async def found(*tags: str) -> list[list[str]]:
            status, answer = await call(network.address, "POST", "/search", {"query": tags}, token=token)
            assert status == 200
            return list(answer)

        bob, alice = ["Bob", "http://127.0.0.1:3000"], ["Alice", "http://127.0.0.1:3001"]
        assert await found("#birth-records") == [bob, alice]
        assert await found("#February", "#birth-records") == [bob]
        assert await found("#February", "#March") == []
        assert await found("#nope", "#March") == []
        assert await call(network.address, "GET", "/datasets", token=token) == (
            200,
            {
                "Bob": [{"id": 1, "tags": list(FEBRUARY.tags)}, {"id": 2, "tags": list(MARCH.tags)}],
                "Alice": [{"id": 2, "tags": list(MARCH.tags)}],
            },
        )
        await gone(network, nodes)

    asyncio.run(flow())


def test_a_guest_searches_only_where_the_owner_allows_it_and_sees_only_public_tags(other_network: NetworkProcess):
    async def flow() -> None:
        network = other_network
        nodes = [
            await member(network, "Bob", datasets=(FEBRUARY,), public=True),
            await member(network, "Alice", datasets=(FEBRUARY,), public=False),
        ]
        query = {"query": ["#February"]}
        _, found = await call(network.address, "POST", "/search", query)
        assert [name for name, _ in found] == ["Bob"]
        _, found = await call(network.address, "POST", "/search", query, token=await network.user("Ana"))
        assert [name for name, _ in found] == ["Bob", "Alice"]
        _, tags = await call(network.address, "GET", "/search-available-tags")
        assert tags == list(FEBRUARY.tags)
        assert (await call(network.address, "GET", "/datasets"))[0] == 401
        await gone(network, nodes)

    asyncio.run(flow())


def test_a_slow_node_is_left_out_of_a_search(network: NetworkProcess):
    async def flow() -> None:
        token = await network.user("Ana")
        nodes = [
            await member(network, "Bob", datasets=(FEBRUARY,)),
            await member(network, "Slow", datasets=(FEBRUARY,), answer_delay_s=30.0),
        ]
        _, found = await call(network.address, "POST", "/search", {"query": ["#February"]}, token=token)
        assert [name for name, _ in found] == ["Bob"]
        _, report = await call(network.address, "GET", "/node/Slow", token=token)
        assert report["status"] == "busy"
        await gone(network, nodes)

    asyncio.run(flow())


def test_models_are_found_and_hosts_are_chosen(network: NetworkProcess):
    async def flow() -> None:
        token = await network.user("Ana")
        whole = HostedModel(id="net")
        shared = HostedModel(
            id="mpc", mpc=True, workers=(("A", "http://a:1"), ("B", "http://b:1")), crypto_provider=("C", "http://c:1")
        )
        nodes = [
            await member(network, "Bob", models=(whole, shared), address="http://127.0.0.1:3000"),
            *[await member(network, name) for name in ("Alice", "Bill")],
        ]

        async def get(path: str) -> object:
            status, answer = await call(network.address, "GET", path, token=token)
            assert status == 200
            return answer

        bob = ["Bob", "http://127.0.0.1:3000"]
        assert await get("/search-available-models") == ["net", "mpc"]
        assert await get("/models") == {"Bob": ["net", "mpc"], "Alice": [], "Bill": []}
        assert await get("/choose-model-host?model_id=net") == [bob]  # who hosts it already wins
        chosen = await get("/choose-model-host?model_id=new")
        assert isinstance(chosen, list)
        assert len({name for name, _ in chosen}) == 2  # --replicas
        assert await get("/choose-encrypted-model-host") == []  # eight would be needed
        status, found = await call(network.address, "POST", "/search-model", {"model_id": "net"}, token=token)
        assert (status, found) == (200, [bob])
        status, found = await call(network.address, "POST", "/search-encrypted-model", {"model_id": "mpc"}, token=token)
        assert status == 200
        assert found == {
            "Bob": {
                "address": "http://127.0.0.1:3000",
                "nodes": {
                    "workers": [["A", "http://a:1"], ["B", "http://b:1"]],
                    "crypto_provider": ["C", "http://c:1"],
                },
            }
        }
        await gone(network, nodes)

    asyncio.run(flow())


def test_one_node_is_reported_with_its_state(network: NetworkProcess):
    async def flow() -> None:
        token = await network.user("Ana")
        nodes = [await member(network, "Reported", datasets=(FEBRUARY,), address="http://127.0.0.1:3000")]
        status, report = await call(network.address, "GET", "/node/Reported", token=token)
        assert status == 200
        assert report == {
            "id": "Reported",
            "status": report["status"],
            "address": "http://127.0.0.1:3000",
            "nodes": [],
            "datasets": [{"id": 1, "tags": list(FEBRUARY.tags)}],
            "models": [],
            "cpu": 1.0,
            "memory": 2.0,
        }
        assert report["status"] in ("online", "busy")
        for node in nodes:
            await node.leave()
        await until(lambda: nobody(network))
        _, report = await call(network.address, "GET", "/node/Reported", token=token)
        assert report["status"] == "offline"
        assert (await call(network.address, "GET", "/node/Nobody", token=token))[0] == 404

    asyncio.run(flow())


def test_html_in_names_is_text_on_the_card(network: NetworkProcess):
    async def flow() -> None:
        name = "<img src=x onerror=alert(1)>"
        node = await member(network, name)
        _, card = await call(network.address, "GET", "/")
        assert "<img" not in card
        assert "&lt;img src=x onerror=alert(1)&gt;" in card
        token = await network.user("Ana")
        assert (await call(network.address, "GET", f"/node/{quote(name)}", token=token))[1]["id"] == name
        await gone(network, [node])

    asyncio.run(flow())


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"query": 1}', b'{"query": [1]}']
)
def test_bad_json_is_400(network: NetworkProcess, body: bytes):
    async def flow() -> None:
        token = await network.user("Ana")
        status, answer = await call(network.address, "POST", "/search", body, token=token)
        assert status == 400
        assert answer["error"].startswith("Invalid JSON format.")
        status, answer = await call(network.address, "POST", "/join", body)
        assert status == 400
        assert answer["message"].startswith("Invalid JSON format.")  # 0.2.9's key on this route

    asyncio.run(flow())


def test_limits_are_named(network: NetworkProcess):
    async def flow() -> None:
        token = await network.user("Ana")
        status, answer = await call(network.address, "POST", "/search", b" " * (MAX_JSON_BYTES + 1), token=token)
        assert (status, str(MAX_JSON_BYTES) in answer["error"]) == (413, True)
        for query in (["x" * 300], ["#x"] * 100):
            assert (await call(network.address, "POST", "/search", {"query": query}, token=token))[0] == 400

    asyncio.run(flow())


def test_a_body_that_claims_a_huge_length_is_refused_unread(network: NetworkProcess):
    parts = urlsplit(network.address)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as connection:
        head = f"POST /search HTTP/1.1\r\nHost: h\r\nContent-Length: {MAX_BODY_BYTES * 1000}\r\n\r\n"
        connection.sendall(head.encode())
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 400")
        assert connection.recv(65536) == b""  # and closed


def test_unknown_paths_and_methods_answer_json(network: NetworkProcess):
    async def flow() -> None:
        status, answer = await call(network.address, "GET", "/nothing")
        assert (status, answer["code"]) == (404, "not-found")
        token = await network.user("Ana")
        status, answer = await call(network.address, "DELETE", "/search", token=token)
        assert (status, answer["code"]) == (405, "method-not-allowed")

    asyncio.run(flow())


# ------------------------------------------------------------------ accounts, which the Node shares


def test_users_and_roles_have_the_shapes_of_old(network: NetworkProcess):
    async def flow() -> None:
        root = await network.user("Root", "Owner")

        async def ask(method: str, path: str, body: object = None, token: str = root) -> tuple[int, dict[str, object]]:
            return await call(network.address, method, path, body, token=token)

        status, answer = await ask("POST", "/users", {"email": "Carol", "password": "correct horse"})
        assert status == 200
        user = answer["user"]
        assert isinstance(user, dict)
        assert (user["email"], user["role"]["name"], user["groups"]) == ("Carol", "User", [])
        assert "password" not in str(answer).replace("password_", "")
        assert (await ask("POST", "/users", {"email": "Carol", "password": "x"}))[0] == 409
        login = {"email": "Carol", "password": "correct horse"}
        status, answer = await call(network.address, "POST", "/users/login", login)
        assert (status, answer["success"]) == (200, True)
        carol = str(answer["token"])
        status, answer = await ask("GET", f"/users/{user['id']}", token=carol)
        assert (status, answer["user"]) == (200, user)
        assert (await ask("GET", "/users", token=carol))[0] == 403
        status, answer = await ask("GET", "/roles")
        assert isinstance(answer["roles"], list)
        ids = {role["name"]: role["id"] for role in answer["roles"]}
        assert {"User", "Compliance Officer", "Administrator", "Owner", "Publisher", "Node"} <= set(ids)
        # nobody raises themselves, nor above who they are
        assert (await ask("PUT", f"/users/{user['id']}/role", {"role": ids["Owner"]}, token=carol))[0] == 403
        status, answer = await ask("PUT", f"/users/{user['id']}/role", {"role": ids["Compliance Officer"]})
        assert isinstance(answer["user"], dict)
        assert (status, answer["user"]["role"]["can_triage_requests"]) == (200, True)
        status, answer = await ask("POST", "/users/search", {"email": "Carol"})
        assert isinstance(answer["users"], list)
        assert [one["email"] for one in answer["users"]] == ["Carol"]
        assert (await ask("PUT", f"/users/{user['id']}/password", {"password": "new one"}, token=carol))[0] == 200
        assert (await call(network.address, "POST", "/users/login", login))[0] == 401
        assert (await ask("DELETE", f"/users/{user['id']}"))[0] == 200
        assert (await ask("GET", "/users/999999999999999999999"))[0] == 404

        status, answer = await ask("POST", "/roles", {"name": "Curator", "can_upload_data": True})
        role = answer["role"]
        assert isinstance(role, dict)
        assert (status, role["can_upload_data"], role["can_edit_roles"]) == (200, True, False)
        status, answer = await ask("PUT", f"/roles/{role['id']}", {"can_triage_requests": True})
        assert isinstance(answer["role"], dict)
        assert (answer["role"]["can_upload_data"], answer["role"]["can_triage_requests"]) == (True, True)
        assert (await ask("DELETE", f"/roles/{role['id']}"))[0] == 200
        assert (await ask("GET", "/groups"))[0] == 404  # a Network has none

    asyncio.run(flow())


def test_a_person_takes_up_an_invite_once(network: NetworkProcess):
    async def flow() -> None:
        invite, _ = await network.owner.invite("User", 60.0)
        body = {"invite": invite, "username": "Dora"}
        status, answer = await call(network.address, "POST", "/invites/accept", body)
        assert (status, answer["username"], answer["role"]) == (200, "Dora", "User")
        assert (await call(network.address, "GET", "/datasets", token=answer["token"]))[0] == 200
        assert (await call(network.address, "POST", "/invites/accept", {**body, "username": "Eve"}))[0] == 401

    asyncio.run(flow())


async def member(network: NetworkProcess, name: str, **told: object) -> FakeNode:
    """A Node that is listed, under a name that may have been one before."""
    await network.forget(name)
    node = FakeNode(name, network.address, invite=await network.node_invite(), **told)  # type: ignore[arg-type]
    await node.join()

    async def is_listed() -> bool:
        return name in await network.connected()

    await until(is_listed)
    return node


async def gone(network: NetworkProcess, nodes: list[FakeNode]) -> None:
    for node in nodes:
        await node.leave()
    await until(lambda: nobody(network))


async def nobody(network: NetworkProcess) -> bool:
    return await network.connected() == []
