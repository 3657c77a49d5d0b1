"""Bulk bytes from the client's side, against a server that is no Node."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from grid_jupyter.errors import LimitExceededError, NodeUnavailableError
from grid_jupyter.link.bulk import download, of_memory, upload
from grid_jupyter.link.http import Address, transfer

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


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n" + bytes(range(100)) * 12 + bytes(34)
HEAD = ANSWER.index(b"\r\n\r\n") + 4


class CutShort:
    """Answers every request, the first ones with only so much of the answer before it hangs up."""

    def __init__(self) -> None:
        self.cuts: list[int] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = Address(f"http://127.0.0.1:{self._listening.getsockname()[1]}")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                made, _ = self._listening.accept()
            except OSError:
                return
            with made:
                made.recv(4096)
                made.sendall(ANSWER[: self.cuts.pop(0)] if self.cuts else ANSWER)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join(10.0)
        self._listening.close()


@pytest.fixture
def cut_short() -> Iterator[CutShort]:
    made = CutShort()
    yield made
    made.close()


def test_a_head_that_is_cut_anywhere_is_never_taken_for_a_whole_one(cut_short: CutShort):
    for cut in range(HEAD):
        cut_short.cuts = [cut]
        with pytest.raises(NodeUnavailableError):
            transfer(cut_short.address, "GET", "/values/1")
    assert transfer(cut_short.address, "GET", "/values/1") == ANSWER[HEAD:]


@pytest.mark.parametrize("cut", [0, 12, HEAD - 8, HEAD - 5, HEAD - 3, HEAD - 2, HEAD - 1])
def test_a_download_whose_head_is_cut_is_asked_for_again(cut_short: CutShort, cut: int):
    cut_short.cuts = [cut]
    assert download(cut_short.address, "/values/1", {}, "fetching") == ANSWER[HEAD:]
