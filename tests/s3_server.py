"""A server that speaks S3, on loopback: moto's."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

KEY, SECRET = "AKIAQUITEOPEN", "not-so-open/dont-tell"


@contextmanager
def s3_server(bucket: str = "ward7") -> Iterator[str]:
    """Its address, with a bucket there."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        address = f"http://{host}:{port}"
        file_system(address).makedirs(bucket, exist_ok=True)  # what is in it is one for all servers of a process
        yield address
    finally:
        running.stop()


def file_system(address: str):
    """The server as fsspec sees it."""
    import s3fs

    return s3fs.S3FileSystem(
        endpoint_url=address, key=KEY, secret=SECRET, use_listings_cache=False, skip_instance_cache=True
    )


def options_file(address: str, file: Path) -> Path:
    """What `--objects-options` names."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        json.dump({"endpoint_url": address, "key": KEY, "secret": SECRET}, out)
    return file


@contextmanager
def line_to(address: str) -> Iterator[tuple[str, threading.Event]]:
    """A line to a server on which nothing passes while the event is not set."""
    port, passes = int(address.rpartition(":")[2]), threading.Event()
    passes.set()
    door = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        with source, target:
            try:
                while data := source.recv(1 << 16):
                    passes.wait(60)
                    target.sendall(data)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                came, _ = door.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", port))
            for one, other in ((came, there), (there, came)):
                threading.Thread(target=pump, args=(one, other.dup()), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{door.getsockname()[1]}", passes
    finally:
        passes.set()
        door.shutdown(socket.SHUT_RDWR)
        door.close()
