"""The credentials that this user holds: who he is on which Node, in one file with mode 0600.

A stored credential is presented only when it is asked for by name, and only to the address it was
stored for: another server, whatever it calls itself, never sees it.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from grid_jupyter.errors import NotAuthenticatedError
from grid_jupyter.wire.home import data_home, private_directory

try:
    import fcntl
except ImportError:  # Windows: the last writer wins there
    fcntl = None  # type: ignore[assignment]


def origin(address: str) -> str:
    """Scheme, host, port and path of an address, in one spelling: `http://127.0.0.1:3000`. The path belongs to it:
    behind a hub, each path is somebody else's Node."""
    parts = urlsplit(address if "//" in address else f"http://{address}")
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    host = parts.hostname or ""
    port = parts.port or (443 if scheme == "https" else 80)
    path = parts.path.rstrip("/")
    return f"{scheme}://{'127.0.0.1' if host == 'localhost' else host}:{port}{path}"


class Credentials:
    """A JSON file {address: {user: token}}. Safe to use from several processes at once."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or data_home() / "credentials.json"

    def store(self, address: str, user: str, token: str) -> None:
        """Remember `token` as `user`'s credential at `address`."""
        with self._changing() as known:
            known.setdefault(origin(address), {})[user] = token

    def forget(self, address: str, user: str | None = None) -> None:
        """Drop one user's credential at an address, or all of them."""
        with self._changing() as known:
            users = known.get(origin(address), {})
            for name in [user] if user is not None else list(users):
                users.pop(name, None)
            if not users:
                known.pop(origin(address), None)

    def users(self, address: str) -> list[str]:
        """Names of the users whose credentials for this address are stored."""
        return sorted(self._read().get(origin(address), {}))

    def get(self, address: str, user: str) -> str:
        """The token of `user` at `address`. Raises NotAuthenticatedError with the remedy."""
        token = self._read().get(origin(address), {}).get(user)
        if token is None:
            raise NotAuthenticatedError(
                f"there is no stored credential of {user!r} for {origin(address)}; accept an invite "
                f"(client.accept_invite), or store a token: client.login(token=…, store=True)"
            )
        return token

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            known = json.loads(self.path.read_text())
        except FileNotFoundError:
            return {}
        except ValueError:
            raise NotAuthenticatedError(
                f"the credentials file {self.path} is damaged; move it away and log in again"
            ) from None
        return known if isinstance(known, dict) else {}

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, dict[str, str]]]:
        folder = private_directory(self.path.parent)
        lock_path = folder / f".{self.path.name}.lock"
        with os.fdopen(os.open(lock_path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            known = self._read()
            yield known
            handle, name = tempfile.mkstemp(dir=folder, prefix=".credentials-")  # mkstemp makes it 0600
            with os.fdopen(handle, "w") as file:
                json.dump(known, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self.path)
