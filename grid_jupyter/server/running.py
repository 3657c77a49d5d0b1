"""A running Node or Network as a process: its options, its lock, its port, what it tells others, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import ipaddress
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec

from grid_jupyter import __version__
from grid_jupyter.errors import Conflict, NotFound
from grid_jupyter.server.socket_places import private_socket, socket_place
from grid_jupyter.wire.files import put_whole
from grid_jupyter.wire.home import private_directory
from grid_jupyter.wire.limits import PROTOCOL

if TYPE_CHECKING:
    from sqlalchemy import URL

    from grid_jupyter.store.object_address import ObjectAddress

log = logging.getLogger("grid_jupyter")

OWNER_SOCKET = "owner.sock"
"""The owner's door."""
PUBLIC_SOCKET = "public.sock"
"""The public doors of a Node once more, for single-port mode (public_door.py)."""
_SOCKETS = (OWNER_SOCKET, PUBLIC_SOCKET)
PORTS_TRIED = 100
"""How many ports, from the one asked for, are tried before giving up."""
BACKLOG = 128
"""Connections that may wait to be accepted."""
FILES = 65_536
"""File descriptors, and with them connections, that a process asks the system for."""
LOCK_PATIENCE_S = 0.5
"""How long a held lock is tried before it counts as held by another process."""
END_S = 10.0
"""Time for an orderly end once the parent is gone; then the process is ended as it stands."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """What one Network process is told on its command line."""

    name: str
    host: str
    port: int
    state_dir: Path
    public_address: str | None = None  # what others are told, where host and port would mislead them
    allow_guests: bool = False  # search without a credential
    replicas: int = 1  # how many hosts choose-model-host names
    heartbeat_s: float = 5.0
    certfile: Path | None = None
    keyfile: Path | None = None
    supervised: bool = False
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """What one Node process is told on its command line."""

    name: str
    host: str
    port: int
    state_dir: Path
    database: URL | None = None  # PostgreSQL; None: a SQLite file in the state directory
    objects: ObjectAddress | None = None  # the object store; None: files in the state directory
    objects_cache_bytes: int = 10 << 30  # copies of objects in the state directory
    objects_sweep: bool = False  # remove objects at this start that no row names
    public_address: str | None = None
    network_url: str | None = None
    invite: str | None = None  # the bare code
    peers: tuple[str, ...] = ()  # addresses of Nodes to which values may be moved, besides those of the Network
    allow_guests: bool = False  # compute without a credential
    public_tags: bool = False  # tags are open to anyone
    heartbeat_s: float = 5.0
    session_memory_bytes: int = 2 << 30
    session_idle_s: float = 1800.0
    session_grace_s: float = 120.0  # a session waits so long for a client whose connection was lost
    max_sessions: int = 16
    spare_workers: int = 2  # kept ready for the next sessions
    warm: bool = False  # load torch at the start
    workers: str = "local"  # shared: of the Nodes' common fork server; or the address of a Dask scheduler
    workers_link: tuple[str, int] | None = None  # where Dask workers reach this Node
    workers_tls: tuple[Path, Path, Path] | None = None  # CA, certificate and key, for a scheduler that uses TLS
    workers_resources: tuple[tuple[str, float], ...] = ()  # what one Worker takes of a Dask worker
    require_isolation: bool = False  # run no Worker without a sandbox
    device: tuple[str, ...] = ("cpu",)  # that Workers compute on (worker/devices.py)
    device_parts: int = 250  # thousandths of its memory for one Worker
    device_memory_bytes: int = 0  # that Workers on the CPU share; 0: each has session_memory_bytes
    max_upload_bytes: int = 64 << 30
    least_upload_bytes: int = 64 << 10  # of a large body, in 30 s
    operation_s: float = 60.0
    session_threads: int | None = None  # for one operation; None: half of this machine's processors
    max_jobs: int = 4  # that run at once
    jobs_per_user: int = 2
    job_storage_bytes: int = 16 << 30  # of one user
    training_storage_bytes: int = 64 << 30  # of all models that devices train
    host_storage_bytes: int | None = None  # of those of one account; None: half of all
    auth_endpoint_hosts: tuple[str, ...] = ()  # that are asked about tokens of devices
    job_s: float = 43_200.0  # of one job, or one round
    push_credentials: Path | None = None  # key of a service account of Firebase
    push_endpoint: str | None = None  # in place of Firebase's own
    certfile: Path | None = None
    keyfile: Path | None = None
    supervised: bool = False
    json: bool = False

    @property
    def computes_here(self) -> bool:
        """Whether Workers run on this machine."""
        return self.workers in ("local", "shared")

    def of_one_host(self) -> int:
        """Bytes that the trainings of one account may keep."""
        half = self.training_storage_bytes // 2
        return half if self.host_storage_bytes is None else self.host_storage_bytes


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """The content of running.json: where a Node or Network is, for the user that it belongs to."""

    role: str
    name: str
    id: str
    address: str
    socket: str
    public_socket: str = ""  # where the Node's public doors answer as well, for the Jupyter server of its owner
    pid: int
    protocol: int = PROTOCOL
    version: str = __version__


class StateDir:
    """The private directory of one Node or Network, held by at most one process at a time.

    As a context manager it takes the lock, and lets go of everything that says "I run" at the end.
    The lock is the kernel's (flock), so a process that was killed does not hold it.
    """

    def __init__(self, path: Path, role: str) -> None:
        self.path = private_directory(path).resolve()
        self.role = role
        self._lock: int | None = None

    def __enter__(self) -> StateDir:
        patience = time.monotonic() + LOCK_PATIENCE_S
        while (lock := try_lock(self.path / f"{self.role}.lock")) is None and time.monotonic() < patience:
            time.sleep(0.01)  # somebody who looks whether it is held holds it for a moment himself
        self._lock = lock
        if lock is None:
            raise Conflict(f"a {self.role} already runs on {self.path}; 'jupyter grid status' shows it")
        with contextlib.suppress(FileNotFoundError):
            (self.path / "running.json").unlink()  # left by one that was killed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.path / "running.json").unlink()
        for name in _SOCKETS:
            with contextlib.suppress(FileNotFoundError):
                socket_place(self.path, name).unlink()
        with contextlib.suppress(OSError):  # it was never made
            socket_place(self.path, OWNER_SOCKET).parent.rmdir()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def announce(self, running: Running) -> None:
        """Write running.json: from here on others may connect."""
        put_whole(self.path / "running.json", msgspec.json.encode(running))

    def socket_path(self, name: str = OWNER_SOCKET) -> Path:
        """Where a unix socket goes: in a 0700 directory of ours, at a path short enough for the kernel."""
        return private_socket(self.path, name)  # a socket that is left over is a killed one's: we hold the lock


def is_held(lock_file: Path) -> bool:
    """Whether another process holds this lock file."""
    if not lock_file.exists():
        return False
    lock = try_lock(lock_file)
    if lock is None:
        return True
    os.close(lock)
    return False


def is_running(state_dir: Path, role: str) -> bool:
    """Whether some process holds this state; true from its first moment on, before running.json is there."""
    return is_held(state_dir / f"{role}.lock")


def read_running(state_dir: Path, role: str) -> Running:
    """The process that runs on this state. Raises NotFound if there is none, or none that is ready."""
    try:
        running = msgspec.json.decode((state_dir / "running.json").read_bytes(), type=Running)
        if is_running(state_dir, role):
            return running
    except (FileNotFoundError, msgspec.DecodeError):
        pass  # it never ran, is starting or ending
    raise NotFound(f"no {role} runs on {state_dir}; start it with 'jupyter grid up' or 'jupyter grid {role}'")


def try_lock(path: Path) -> int | None:
    """An open handle that holds the lock file until it is closed, or this process ends; None if another holds it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


# ------------------------------------------------------------------ where it listens


def allow_many_connections() -> None:
    """Take as many file descriptors as the system lets this user have: 1024, a usual default, are soon idle ones."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, FILES) if most > 0 else FILES, most))


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets on `port`, or on the next free one. Raises Conflict if a hundred in a row are taken."""
    for candidate in range(port, min(port + PORTS_TRIED, 65536)) if port else (0,):
        sockets = _try_listen(host, candidate)
        if sockets:
            return sockets
    raise Conflict(f"no free port on {host} from {port} on; name another one with --port")


def _try_listen(host: str, port: int) -> list[socket.socket]:
    """Sockets on every address that `host` stands for, all on this port; none if it is taken."""
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, place in sorted({(family, place) for family, _, _, _, place in found}):
            listener = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(listener)
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
            listener.bind((place[0], port or sockets[0].getsockname()[1], *place[2:]))
            listener.listen(BACKLOG)
    except OSError as error:
        for listener in sockets:
            listener.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            return []
        raise Conflict(f"cannot listen on {host}: {error.strerror or error}") from None
    return sockets


def address_of(sockets: list[socket.socket], host: str, *, tls: bool, public_address: str | None = None) -> str:
    """The address that others are told: the one asked for, or one of this machine where host is a wildcard."""
    if public_address is not None:
        return public_address.rstrip("/")
    port = sockets[0].getsockname()[1]
    if host in ("", "0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = _own_address(socket.AF_INET6 if host == "::" else socket.AF_INET)
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _own_address(family: socket.AddressFamily) -> str:
    """This machine's address on the network that it would use; nothing is sent to find out."""
    documentation = "2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1"  # never routed
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((documentation, 9))
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a door bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def warn_if_exposed(role: str, host: str, *, tls: bool) -> None:
    """Say it loudly when credentials would cross a network unencrypted."""
    if tls or is_loopback(host):
        return
    text = (
        f"this {role} listens beyond this machine ({host}) WITHOUT TLS: credentials and values cross the "
        f"network readable and changeable by others. Give --certfile and --keyfile, or --host 127.0.0.1."
    )
    print(f"\n  !!! WARNING: {text}\n", file=sys.stderr, flush=True)


# ------------------------------------------------------------------ its end


@contextlib.asynccontextmanager
async def told_to_end(*, supervised: bool) -> AsyncIterator[asyncio.Event]:
    """An event that is set on SIGTERM, on SIGINT, or, if supervised, when stdin reaches its end.

    A supervised process leaves SIGINT to its parent: Ctrl-C reaches both, and the parent ends its
    children in order.
    """
    loop = asyncio.get_running_loop()
    end = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, end.set)
    loop.add_signal_handler(signal.SIGINT, (lambda: None) if supervised else end.set)
    if supervised:
        threading.Thread(target=_watch_stdin, args=(loop, end), name="stdin", daemon=True).start()
    try:
        yield end
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _watch_stdin(loop: asyncio.AbstractEventLoop, end: asyncio.Event) -> None:
    try:
        while os.read(0, 4096):  # not sys.stdin: its lock would be held while the interpreter ends
            pass
    except OSError:
        pass  # stdin was closed: the same as its end
    try:
        loop.call_soon_threadsafe(end.set)
    except RuntimeError:
        return  # the loop is closed: it has ended already
    threading.Event().wait(END_S)
    os._exit(1)  # only reached by one that hangs: the thread dies with an orderly end


def say_ready(running: Running, *, supervised: bool, json: bool) -> None:
    """Print that the doors are open: the content of running.json, or a line for people."""
    if json:
        print(msgspec.json.encode(running).decode(), flush=True)
    elif not supervised:  # a parent reads running.json
        print(f"{running.role.capitalize()} {running.name}: {running.address}", flush=True)


def say_owner_token(code: str, address: str, *, supervised: bool, json: bool) -> None:
    """Print the one-time code of the first start; a supervising parent is the owner and needs none."""
    if supervised:
        return
    print(
        f"First start. Whoever opens this invite first becomes the owner (it works once):\n"
        f"  {address}/#{code}\n"
        f"Or, on this machine: jupyter grid token issue NAME --role Owner --store",
        file=sys.stderr if json else sys.stdout,
        flush=True,
    )
