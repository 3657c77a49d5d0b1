"""TLS of a server: a certificate and its key, from files."""

from __future__ import annotations

import ssl
from pathlib import Path

from grid_jupyter.errors import BadRequest


def tls_context(
    certfile: str | Path | None, keyfile: str | Path | None, *, options: tuple[str, str]
) -> ssl.SSLContext | None:
    """TLS with that certificate, or None without one. `options` are the names under which the user gave the two.

    Raises BadRequest for files that do not fit.
    """
    if certfile is None:
        if keyfile is not None:
            raise BadRequest(f"{options[1]} needs {options[0]}")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certfile, keyfile)
    except (OSError, ssl.SSLError) as error:
        raise BadRequest(f"the certificate {certfile} cannot be used: {error}") from None
    return context
