"""Where Workers on other machines arrive at their Node: one port, TLS with its own certificate, one-time tickets."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import logging
import secrets
import socket
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from grid_jupyter.errors import GridError, InvalidMessageError, NodeUnavailableError
from grid_jupyter.wire import relay
from grid_jupyter.worker.relay import Stream

log = logging.getLogger("grid_jupyter")

_ARRIVE_S = 10.0
_VALID = datetime.timedelta(days=3650)

Arrived = Callable[[relay.Arrive, Stream], None]


class FarDoor:
    """The port. `arrived` is called for each connection that shows a ticket, of which it takes each once."""

    def __init__(self, arrived: Arrived, is_expected: Callable[[str], bool]) -> None:
        self.certificate = ""
        self.port = 0
        self._arrived = arrived
        self._is_expected = is_expected
        self._server: asyncio.Server | None = None

    async def open(self, host: str, port: int) -> None:
        """Listen there, or on all addresses if that one is not this machine's. Raises NodeUnavailableError."""
        self.certificate, context = _certified()
        try:
            self._server = await asyncio.start_server(
                self._met, host if _is_ours(host) else None, port, ssl=context, ssl_handshake_timeout=_ARRIVE_S
            )
        except OSError as error:
            raise NodeUnavailableError(f"this Node cannot listen for its Dask workers: {error.strerror}") from None
        self.port = self._server.sockets[0].getsockname()[1]

    async def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = Stream(reader, writer)
        try:
            message, _ = await asyncio.wait_for(stream.receive(), _ARRIVE_S)
            if not isinstance(message, relay.Arrive) or not self._is_expected(message.ticket):
                raise InvalidMessageError("it has no ticket")
        except (EOFError, OSError, GridError, asyncio.TimeoutError) as error:
            log.info("a connection that is no Worker's was closed: %s", type(error).__name__)
            stream.close()
            return
        self._arrived(message, stream)

    def close(self) -> None:
        """Take nobody in any more."""
        if self._server is not None:
            self._server.close()


def new_ticket() -> str:
    """What one Worker shows, once."""
    return secrets.token_urlsafe(32)


def way_to(address: str) -> str:
    """This machine's address as whoever listens at `host:port` sees it."""
    host, _, port = address.rpartition(":")
    name = host.strip("[]")
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, where in socket.getaddrinfo(name, int(port), type=socket.SOCK_DGRAM):
            with socket.socket(family, kind, protocol) as asked:
                asked.connect(where)  # sends nothing
                return str(asked.getsockname()[0])
    raise NodeUnavailableError(f"there is no way to {name}; say with --workers-link where Dask workers reach this Node")


def _is_ours(host: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        address = ipaddress.ip_address(host)
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.bind((host, 0))
            return True
    return False


def _certified() -> tuple[str, ssl.SSLContext]:
    """A certificate for this run of the Node, as PEM, and TLS with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "grid_jupyter Node")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks differ
        .not_valid_after(now + _VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate = made.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with tempfile.TemporaryDirectory() as private:  # 0700; ssl reads keys from files only
        path = Path(private) / "node.pem"
        path.touch(0o600)
        path.write_bytes(certificate + secret)
        context.load_cert_chain(path)
    return certificate.decode(), context
