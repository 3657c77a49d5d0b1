"""Asking a third party about a device's token: 0.2.9's `authentication.endpoint`, to hosts alone that the owner lists.

    POST endpoint  {"auth_token": …}   →   200: the token is good; anything else: it is not

Whoever hosts a model chooses the URL, so that it may reach nothing that its writer could not: names must be listed, and
so must every address that is not of the public internet. The address that was checked is the one that is asked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from urllib.parse import SplitResult, urlsplit

import msgspec

from grid_jupyter.errors import BadRequest, NodeUnavailableError, NotAuthenticatedError

REFUSED = "The 'auth_token' you sent did not pass 3rd party validation."
TIMEOUT_S = 5.0
"""For all of it: a name to look up, a connection, an answer."""
AT_ONCE = 32
"""Questions that wait for an answer at one time; more devices wait for their turn."""
TURN_S = 10.0
"""How long a device waits for that."""
_URL = re.compile(r"https?://[\x21\x23-\x5b\x5d-\x7e]{1,2000}")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

_DEFAULT_PORTS = {"http": 80, "https": 443}

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class ThirdParty:
    """Whom this Node asks. `hosts` are names, addresses, and networks such as 10.1.0.0/16; a name or an address may
    have a port behind it, and is asked there and nowhere else. Without one it is the scheme's, 443 or 80."""

    def __init__(self, hosts: Sequence[str] = (), *, timeout_s: float = TIMEOUT_S) -> None:
        """Raises BadRequest for what is neither a name, nor an address or network."""
        self._timeout_s = timeout_s
        self._names: set[tuple[str, int | None]] = set()
        self._networks: list[tuple[IpNetwork, int | None]] = []
        for told in hosts:
            host, port = _with_port(told)
            try:
                self._networks.append((ipaddress.ip_network(host), port))
            except ValueError:
                if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host):
                    raise BadRequest(
                        f"--auth-endpoint-host takes a name, an address or a network, such as auth.example.org, "
                        f"auth.example.org:8443, 10.1.2.3 or 10.1.0.0/16; not {told[:80]!r}"
                    ) from None
                self._names.add((host.lower(), port))
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._names_asked = ThreadPoolExecutor(4, thread_name_prefix="grid-names")  # others wait for no name server
        self._tls: ssl.SSLContext | None = None

    def check_url(self, url: str) -> None:
        """Refuse an endpoint that would not be asked. Raises BadRequest."""
        parts = _parts(url)
        host, port = parts.hostname or "", _port(parts)
        listed = None if port == _DEFAULT_PORTS[parts.scheme] else port
        if {(host, port), (host, listed)} & self._names or self._lists(host, port, listed):
            return
        told = host[:80] if listed is None else f"{host[:80]}:{port}"
        raise BadRequest(
            f"this Node does not ask {told!r} about tokens: its owner lists that host, with its port where that is not "
            "the scheme's own (jupyter grid node --auth-endpoint-host), or leave authentication.endpoint out"
        )

    async def check(self, url: str, token: str) -> None:
        """Ask whether a token is good.

        Raises NotAuthenticatedError where it is not, NodeUnavailableError where nobody says, or may be asked.
        """
        try:
            await asyncio.wait_for(self._turns.acquire(), TURN_S)
        except asyncio.TimeoutError:
            raise NodeUnavailableError("too many devices wait for a third party; authenticate again later") from None
        try:
            status = await asyncio.wait_for(self._ask(_parts(url), token), self._timeout_s)
        except (OSError, ssl.SSLError, asyncio.TimeoutError, asyncio.IncompleteReadError, ValueError):
            raise NodeUnavailableError(
                "the third party that this training has for tokens gave no answer; authenticate again later"
            ) from None
        except BadRequest as error:
            raise NodeUnavailableError(f"tokens cannot be validated: {error}") from None
        finally:
            self._turns.release()
        if status != 200:
            raise NotAuthenticatedError(f"{REFUSED} Get a new one from whoever gave it to you")

    async def _ask(self, url: SplitResult, token: str) -> int:
        host, port = url.hostname or "", _port(url)
        self.check_url(url.geturl())
        address = await self._address(host, port)
        tls = None
        if url.scheme == "https":
            if self._tls is None:  # some twenty milliseconds in which nothing else is done
                self._tls = ssl.create_default_context()
            tls = self._tls
        reader, writer = await asyncio.open_connection(
            str(address), port, ssl=tls, server_hostname=host if tls is not None else None
        )
        try:
            body = msgspec.json.encode({"auth_token": token})
            path = (url.path or "/") + (f"?{url.query}" if url.query else "")
            named = f"[{host}]" if ":" in host else host
            head = (
                f"POST {path} HTTP/1.1\r\nHost: {named}:{port}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
            )
            writer.write(head.encode("ascii") + body)
            line = await reader.readline()  # no more of it is read: neither a redirect nor a body
        finally:
            writer.close()
        found = re.match(rb"HTTP/1\.[01] (\d{3})(?= |\r|\n)", line)
        if found is None:
            raise ValueError("no answer of HTTP")
        return int(found[1])

    async def _address(self, host: str, port: int) -> IpAddress:
        """Raises BadRequest where a name stands for what is not listed."""
        loop = asyncio.get_running_loop()
        asked = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await loop.run_in_executor(self._names_asked, asked)
        addresses = [ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in found]
        for address in addresses:
            if not _public(address) and not any(address in network for network, _ in self._networks):
                raise BadRequest(
                    f"{host[:80]!r} is in a private network; the owner of this Node lists its address as well "
                    "(--auth-endpoint-host), or not"
                )
        return addresses[0]

    def _lists(self, text: str, *ports: int | None) -> bool:
        """Whether it is an address that is listed with one of these ports."""
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        return any(address in network and port in ports for network, port in self._networks)


def _port(url: SplitResult) -> int:
    return url.port or _DEFAULT_PORTS[url.scheme]


def _with_port(told: str) -> tuple[str, int | None]:
    """A host that is listed, and the port behind it: of `[::1]:8443` and `auth.example.org:8443` 8443."""
    found = re.fullmatch(r"(?:\[(?P<inner>[^\[\]]*)\]|(?P<plain>[^:\[\]]*)):(?P<port>[0-9]{1,5})", told)
    if found is None or not 0 < int(found["port"]) < 1 << 16:
        return told.strip("[]"), None
    return found["inner"] if found["plain"] is None else found["plain"], int(found["port"])


def _parts(url: str) -> SplitResult:
    """Raises BadRequest for what is no plain URL of a host."""
    try:
        parts = urlsplit(url)
        plain = bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc and not parts.fragment
    except ValueError:
        plain = False
    if not plain or not _URL.fullmatch(url):
        raise BadRequest("authentication.endpoint is a URL, http:// or https://, without a user name in it")
    return parts


def _public(address: IpAddress) -> bool:
    """Whether it is of the public internet, also behind the forms that IPv6 has for addresses of IPv4."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return _public(inner)
    return address.is_global and not address.is_multicast
