"""Bulk bytes from the client's side, against a server that is no Node."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from grid_jupyter.errors import LimitExceededError
from grid_jupyter.link.bulk import of_memory, upload
from grid_jupyter.link.http import Address

SIZE = 64 << 20
"""Bytes of an upload: more than a connection holds."""


class Deaf:
    """Answers the head of a request with a refusal, takes nothing more, and does not hang up."""

    def __init__(self) -> None:
        self.connections: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = Address(f"http://127.0.0.1:{self._listening.getsockname()[1]}")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        said = LimitExceededError("this is too large").to_wire()
        body = str(said).replace("'", '"').encode()
        while True:
            try:
                made, _ = self._listening.accept()
            except OSError:
                return
            self.connections.append(made)
            made.recv(4096)
            made.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join(10.0)
        with ExitStack() as stack:
            for one in (self._listening, *self.connections):
                stack.callback(one.close)


@pytest.fixture
def deaf() -> Iterator[Deaf]:
    made = Deaf()
    yield made
    made.close()


def test_a_refusal_is_heard_though_the_rest_of_the_upload_finds_no_taker(deaf: Deaf):
    began = time.monotonic()
    with pytest.raises(LimitExceededError, match="this is too large"):
        upload(deaf.address, "/values/1", "", of_memory(bytes(SIZE)), SIZE, {}, "sending")
    assert len(deaf.connections) == 1, "what is refused is not tried again"
    assert time.monotonic() - began < 30.0
