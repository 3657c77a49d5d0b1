"""Third parties that are asked about tokens of devices: which ones, what counts as yes, and what they cannot do."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from cycle_world import world

from grid_jupyter.cycles.third_party import REFUSED, ThirdParty, _public
from grid_jupyter.errors import BadRequest, NodeUnavailableError, NotAuthenticatedError

HERE = "127.0.0.1"
SECRET = "a secret of more than thirty-two bytes"
YES = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Judge:
    """A third party: keeps what it is asked, and answers as it is told."""

    def __init__(self, port: int, answer: bytes | None) -> None:
        self.port, self.answer = port, answer
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def host(self, name: str = HERE) -> str:
        """As an owner lists it."""
        return f"{name}:{self.port}"

    def url(self, host: str = HERE) -> str:
        return f"http://{host}:{self.port}/check?by=node"


@asynccontextmanager
async def judge(answer: bytes | None) -> AsyncIterator[Judge]:
    """`answer` None: never."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        made.asked.append((head.decode().splitlines()[0], body))
        if made.answer is None:
            await reader.read()
        else:
            writer.write(made.answer)
        writer.close()

    server = await asyncio.start_server(serve, HERE)
    made = Judge(server.sockets[0].getsockname()[1], answer)
    try:
        yield made
    finally:
        server.close()


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(work())  # type: ignore[arg-type]


def test_200_lets_a_device_in_and_nothing_else_does():
    async def work() -> None:
        async with judge(YES) as one:
            party = ThirdParty([one.host()], timeout_s=5)
            await party.check(one.url(), "tökén\r\nX: y")
            assert one.asked == [("POST /check?by=node HTTP/1.1", {"auth_token": "tökén\r\nX: y"})]
            for answer in (
                b"HTTP/1.1 403 Forbidden\r\n\r\n", b"HTTP/1.0 500 no\r\n\r\n", b"HTTP/1.1 204 \r\n\r\n",
                b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n",
            ):  # fmt: skip
                one.answer = answer
                with pytest.raises((NotAuthenticatedError, NodeUnavailableError)) as refused:
                    await party.check(one.url(), "t")
                assert b"2000" in answer or str(refused.value).startswith(REFUSED)
            assert len(one.asked) == 6  # a redirect is not followed

    run(work)


@pytest.mark.parametrize("answer", [None, b"", b"hello\r\n", b"x" * 200_000, b"HTTP/1.1 abc\r\n"])
def test_a_third_party_that_never_answers_or_says_nothing_of_sense_is_given_up(answer: bytes | None):
    async def work() -> None:
        async with judge(answer) as one:
            party = ThirdParty([one.host()], timeout_s=0.5)
            began = time.monotonic()
            with pytest.raises(NodeUnavailableError, match="gave no answer; authenticate again later"):
                await party.check(one.url(), "t")
            assert time.monotonic() - began < 5

    run(work)


def test_nothing_listens_there():
    async def work() -> None:
        with socket.socket() as one:
            one.bind((HERE, 0))
            host = f"{HERE}:{one.getsockname()[1]}"
            with pytest.raises(NodeUnavailableError, match="gave no answer"):
                await ThirdParty([host]).check(f"http://{host}/", "t")

    run(work)


def test_a_listed_name_in_a_private_network_is_asked_only_where_its_address_is_listed_too():
    async def work() -> None:
        async with judge(YES) as one:
            with pytest.raises(NodeUnavailableError, match="is in a private network"):
                await ThirdParty([one.host("localhost")]).check(one.url("localhost"), "t")
            assert one.asked == []
            await ThirdParty([one.host("LOCALHOST"), "127.0.0.0/8", "::1"]).check(one.url("localhost"), "t")
            assert len(one.asked) == 1

    run(work)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://other.example.org/", "does not ask 'other.example.org'"),
        ("http://auth.example.org.evil.example/", "does not ask"),
        ("http://10.0.0.1/", "does not ask '10.0.0.1'"),
        ("http://169.254.169.254/latest/meta-data", "does not ask"),
        ("http://2130706433/", "does not ask"),
        ("http://[::ffff:127.0.0.1]/", "does not ask"),
        ("http://auth.example.org@10.0.0.1/", "without a user name"),
        ("https://auth.example.org:22/", "does not ask 'auth.example.org:22' about tokens.*with its port"),
        ("https://auth.example.org:80/", "does not ask 'auth.example.org:80'"),
        ("ftp://auth.example.org/", "is a URL, http"),
        ("file:///etc/passwd", "is a URL, http"),
        ("http://auth.example.org:99999/", "is a URL, http"),
        ("http://auth.example.org/a\r\nX: y", "is a URL, http"),
        ("http://auth.example.org/ä", "is a URL, http"),
        ("http://auth.example.org/#a", "is a URL, http"),
        ("http:///path", "is a URL, http"),
        ("", "is a URL, http"),
    ],
)
def test_an_endpoint_that_is_not_listed_or_is_no_plain_url_is_refused_at_hosting(tmp_path: Path, url: str, said: str):
    party = ThirdParty(["auth.example.org"])
    party.check_url("https://auth.example.org/x?y=z")

    async def work() -> None:
        async with world(tmp_path, third_party=party) as here:
            with pytest.raises(BadRequest, match=said):
                await here.host(authentication={"endpoint": url})

    run(work)


@pytest.mark.parametrize("listed", ["auth.example.org:8443", "10.1.2.3:8443", "[fd00::1]:8443"])
def test_a_host_that_is_listed_with_a_port_is_asked_there_alone(listed: str):
    party = ThirdParty([listed])
    party.check_url(f"https://{listed}/check")
    host = listed.removesuffix(":8443")
    for url in (f"https://{host}/", f"https://{host}:443/", f"http://{host}:8444/"):
        with pytest.raises(BadRequest, match="does not ask"):
            party.check_url(url)
    both = ThirdParty([listed, f"{host}:443"])
    both.check_url(f"https://{host}/")


def test_a_node_whose_owner_lists_nobody_asks_nobody(tmp_path: Path):
    async def work() -> None:
        async with world(tmp_path) as here:
            with pytest.raises(BadRequest, match="--auth-endpoint-host"):
                await here.host(authentication={"type": "jwt", "endpoint": "https://auth.example.org/"})

    run(work)


@pytest.mark.parametrize("host", ["http://x", "a b", "10.0.0.1/33", "", "-a", "x/y", "x:0", "x:70000", "x:y", ":80"])
def test_what_is_neither_a_name_nor_an_address_cannot_be_listed(host: str):
    with pytest.raises(BadRequest, match="--auth-endpoint-host takes a name"):
        ThirdParty([host])


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("10.1.2.3", False), ("127.0.0.1", False), ("192.0.2.1", False),
        ("169.254.169.254", False), ("192.168.1.1", False), ("100.64.0.1", False), ("::1", False), ("fe80::1", False),
        ("fd00::1", False), ("::ffff:10.0.0.1", False), ("64:ff9b::a00:1", False), ("64:ff9b::808:808", True),
        ("2002:a00:1::", False), ("224.0.0.1", False), ("255.255.255.255", False),
    ],
)  # fmt: skip
def test_what_is_of_the_public_internet(address: str, public: bool):
    assert _public(ipaddress.ip_address(address)) == public


def test_a_device_needs_its_signature_and_the_third_party_and_what_is_refused_leaves_nothing(tmp_path: Path):
    async def work() -> None:
        async with judge(YES) as one, world(tmp_path, third_party=ThirdParty([one.host()])) as here:
            await here.host("both", authentication={"secret": SECRET, "endpoint": one.url()})
            await here.host("alone", authentication={"endpoint": one.url()})
            good = jwt.encode({"exp": int(time.time()) + 3600}, SECRET, "HS256")
            assert await here.device("both", auth_token=good)
            assert await here.device("alone", auth_token="no jwt at all")
            with pytest.raises(NotAuthenticatedError, match="'auth_token' you sent is invalid"):
                await here.device("both", auth_token="no jwt at all")
            with pytest.raises(NotAuthenticatedError, match="please pass an 'auth_token'"):
                await here.device("alone")
            assert len(one.asked) == 2  # nobody is asked about what is refused already
            one.answer = b"HTTP/1.1 401 no\r\n\r\n"
            for name in ("both", "alone"):
                with pytest.raises(NotAuthenticatedError, match="did not pass 3rd party validation"):
                    await here.device(name, auth_token=good)
            stored = await here.cycles._table.transact(lambda rows: [rows.registered(k) for k in (1, 2)])
            assert stored == [1, 1]
        async with world(tmp_path) as without:  # started again without the option
            with pytest.raises(NodeUnavailableError, match="--auth-endpoint-host"):
                await without.device("both", auth_token=good)

    run(work)


def test_many_devices_wait_for_their_turn():
    async def work() -> None:
        async with judge(YES) as one:
            party = ThirdParty([one.host()])
            await asyncio.gather(*(party.check(one.url(), "t") for _ in range(100)))
            assert len(one.asked) == 100

    run(work)
