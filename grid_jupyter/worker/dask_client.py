"""The way to a Dask scheduler: plain, or by TLS with certificates that are named here or in Dask's configuration.

What Dask says of a failure is for who knows Dask; here it says what to do.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import NamedTuple

from distributed import Client, Security
from distributed.comm.core import CommClosedError

from grid_jupyter.errors import BadRequest, NodeUnavailableError

_CONNECT_S = 10.0


class Certificates(NamedTuple):
    """PEM files by which a Node and a Dask cluster know each other."""

    ca: Path
    """Of the authority that signed the certificates of all of them."""
    cert: Path
    key: Path
    """Of the Node."""


async def connected(address: str, certificates: Certificates | None) -> Client:
    """A client of the scheduler at `dask://`, `tcp://` or `tls://`.

    Raises BadRequest for certificates that are no use, NodeUnavailableError where no scheduler answers, or it and this
    Node do not trust each other.
    """
    plain = address.replace("dask://", "tcp://", 1)
    security = _security(plain, certificates)
    try:
        made: Client = await Client(
            plain, asynchronous=True, timeout=_CONNECT_S, set_as_default=False, name="grid_jupyter Node",
            security=security,
        )  # fmt: skip
        return made
    except (OSError, asyncio.TimeoutError, ValueError) as error:
        raise _said(error, address) from None


def _said(error: Exception, address: str) -> NodeUnavailableError:
    scheduler, uses_tls = f"the Dask scheduler at {address}", address.startswith("tls://")
    remedy = (
        "give all of them certificates of one authority (CA). The Node takes its by --workers-tls CA CERT KEY, or from "
        "distributed.comm.tls in Dask's configuration"
    )
    if uses_tls and isinstance(error.__cause__, ssl.SSLCertVerificationError):
        return NodeUnavailableError(f"this Node does not trust the certificate of {scheduler}: {remedy}")
    if uses_tls and isinstance(error, CommClosedError):  # by TLS 1.3 it may close before it has said why
        return NodeUnavailableError(
            f"{scheduler} ended the connection, as where it does not trust the certificate of this Node: {remedy}"
        )
    return NodeUnavailableError(
        f"no Dask scheduler answers at {address} ({type(error).__name__}); is it running, and is the address right"
        f"{'' if uses_tls else ': tls://, if it uses TLS'}?"
    )


def _security(address: str, certificates: Certificates | None) -> Security | None:
    if not address.startswith("tls://"):
        if certificates is not None:
            raise BadRequest("--workers-tls is for a scheduler that uses TLS: say --workers tls://HOST:PORT")
        return None
    if certificates is None:
        found = Security()
    else:
        ca, cert, key = map(str, certificates)
        found = Security(tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key, require_encryption=True)
    try:
        has_any = found.get_connection_args("client").get("ssl_context")
    except OSError as error:  # ssl.SSLError is one as well
        raise BadRequest(
            f"the certificates for the Dask scheduler are no use ({error.strerror or error}): they are PEM files of "
            f"the authority, of the Node's certificate, and of the key to that"
        ) from None
    if not has_any:
        raise NodeUnavailableError(
            "a tls:// scheduler needs certificates: --workers-tls CA CERT KEY, or in Dask's configuration "
            "distributed.comm.tls.ca-file, and client.cert and client.key beside it (docs/dask.md)"
        )
    return found
