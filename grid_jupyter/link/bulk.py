"""Bulk bytes up and down, from the client's side: what was cut goes on from where it was. Knows no tensors."""

from __future__ import annotations

import http.client
import itertools
import select
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from grid_jupyter.errors import Conflict, GridError, NodeUnavailableError, ObjectNotFoundError, TooSlowError
from grid_jupyter.link.http import TIMEOUT_S, Address, reported, untrusted
from grid_jupyter.link.progress import Progress
from grid_jupyter.link.room import Pages, Room

RETRIES = 6
"""How often in a row a transfer is taken up again without getting any further."""
FIRST_DELAY_S = 0.1
"""Time before the first of them; it doubles with each."""
PIECE = 4 << 20
"""Bytes that are sent or taken at a time."""
_MAX_ERROR = 1 << 20
_LAST_WORDS_S = 2.0
"""How long an answer may take where the other side takes no more."""

Pieces = Callable[[int], Iterable[memoryview]]
"""The bytes of an upload from some byte on, piece by piece."""


class _Cut(Exception):
    """The connection broke; the bytes that got through count."""


def upload(
    address: Address, path: str, query: str, pieces: Pieces, length: int, headers: dict[str, str], what: str
) -> None:
    """PUT bytes, and PATCH what is missing as often as the connection breaks. `what` is said beside the bar.

    Raises what the other side reports, or NodeUnavailableError.
    """
    offset, begun, tries = 0, False, _Tries()
    with Progress(what, length) as progress:
        while True:
            try:
                if begun:
                    offset, complete = _progress(address, path, headers)
                    progress.at(offset)
                    if complete:
                        return
                    if offset == length:  # all of it is there, and on its way to where it is kept
                        tries = _Tries()
                _put(address, path, query, pieces, offset, length, headers, progress)
                return
            except _Cut as cut:
                begun = True
                tries.wait(offset, address, cut)
            except TooSlowError:  # what came is kept, as when it is cut
                begun = True
                tries.wait(offset, address, _Cut("TooSlowError"))
            except Conflict:  # what came over the broken connection had not all arrived when we asked
                if not begun:
                    raise
                tries.wait(offset, address, _Cut("Conflict"))
            except ObjectNotFoundError:
                if not begun:
                    raise
                offset, begun = 0, False


def download(address: Address, path: str, headers: dict[str, str], what: str, room: Room | None = None) -> memoryview:
    """GET bytes, and the rest of them as often as the connection breaks; into `room`, where somebody downloads the
    same again and again. Raises as `upload`."""
    data, got, pages, tries = memoryview(b""), 0, Pages(), _Tries()
    with Progress(what) as progress:
        while True:
            try:
                with _Exchange(address) as exchange:
                    ranged = {"Range": f"bytes={got}-"} if got else {}
                    response = exchange.ask("GET", path, {**headers, **ranged})
                    if not got:
                        data, pages = (room or Room()).take(response.length or 0)
                        progress.of(len(data))
                    elif response.status != 206 or response.length != len(data) - got:
                        raise GridError(f"{address.url} answered with something else than the rest of a download")
                    while got < len(data):
                        pages.make(got + PIECE)
                        count = exchange.take(response, data[got : got + PIECE])
                        got += count
                        progress.at(got)
            except _Cut as cut:
                tries.wait(got, address, cut)
                continue
            try:
                with _Exchange(address) as exchange:
                    exchange.ask("DELETE", path, headers).read()
            except (_Cut, GridError):
                pass  # the other side will forget it by itself
            return data


class _Tries:
    """Counts attempts that got no further, and waits between them."""

    def __init__(self) -> None:
        self._left = RETRIES
        self._reached = -1

    def wait(self, reached: int, address: Address, cut: _Cut) -> None:
        """Raises NodeUnavailableError when it was tried often enough."""
        if reached > self._reached >= 0:
            self._left = RETRIES
        self._reached = max(reached, self._reached)
        if not self._left:
            raise NodeUnavailableError(
                f"{address.url} does not answer ({cut}): is it running, and is the address right?"
            ) from None
        time.sleep(FIRST_DELAY_S * 2 ** (RETRIES - self._left))
        self._left -= 1


def _progress(address: Address, path: str, headers: dict[str, str]) -> tuple[int, bool]:
    with _Exchange(address) as exchange:
        response = exchange.ask("HEAD", path, headers)
        told, complete = response.headers.get("Upload-Offset", ""), response.headers.get("Upload-Complete")
        if not told.isdigit():
            raise GridError(f"{address.url} does not tell how far an upload is; its version may differ")
        return int(told), complete == "?1"


def _put(
    address: Address, path: str, query: str, pieces: Pieces, offset: int, length: int, headers: dict[str, str],
    progress: Progress,
) -> None:  # fmt: skip
    with _Exchange(address) as exchange:
        if offset:
            begin, where, resumed = "PATCH", path, {"Upload-Offset": str(offset)}
        else:
            begin, where, resumed = "PUT", path + query, {}
        exchange.begin(begin, where, {**headers, **resumed, "Content-Length": str(length - offset)})
        for piece in pieces(offset):
            if not exchange.send(piece):
                break  # refused before all was sent: the answer says why
            offset += len(piece)
            progress.at(offset)
        exchange.answer().read()


class _Exchange:
    """One connection for one call. Raises _Cut where it breaks."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._connection = address.connect()

    def __enter__(self) -> _Exchange:
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()

    def begin(self, method: str, path: str, headers: dict[str, str]) -> None:
        """Send the head of a request."""
        try:
            self._connection.putrequest(method, self._address.path + path, skip_accept_encoding=True)
            for name, value in headers.items():
                self._connection.putheader(name, value)
            self._connection.endheaders()
        except ssl.SSLCertVerificationError:
            raise untrusted(self._address) from None
        except (OSError, http.client.HTTPException) as error:
            raise _Cut(type(error).__name__) from None

    def send(self, piece: memoryview) -> bool:
        """Send a part of the body; whether the other side still takes it. If not, it may have said why: `answer`."""
        sock = self._connection.sock
        try:
            if isinstance(sock, ssl.SSLSocket):  # what comes need not be an answer
                sock.sendall(piece)
                return True
            watched = select.poll()
            watched.register(sock, select.POLLIN | select.POLLOUT)
            while piece:
                # who refuses an upload answers before its end, and need not take the rest: it would not move again
                events = watched.poll(TIMEOUT_S * 1e3)
                if not events:
                    raise TimeoutError
                if events[0][1] != select.POLLOUT:
                    return False
                piece = piece[sock.send(piece) :]
        except OSError:
            sock.settimeout(_LAST_WORDS_S)
            return False
        return True

    def answer(self) -> http.client.HTTPResponse:
        """The answer's head. Raises what it reports."""
        try:
            response = self._connection.getresponse()
            if response.status in (200, 206):
                return response
            said = response.read(_MAX_ERROR)
        except (OSError, http.client.HTTPException) as error:
            raise _Cut(type(error).__name__) from None
        if response.status == 404 and not said:  # to a HEAD there is no text
            raise ObjectNotFoundError("there is no such upload, or no longer")
        raise reported(response.status, said, self._address.url)

    def ask(self, method: str, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        """A request without a body."""
        self.begin(method, path, headers)
        return self.answer()

    def take(self, response: http.client.HTTPResponse, into: memoryview) -> int:
        """Take some of an answer's bytes; how many."""
        try:
            count = response.readinto(into)
        except (OSError, http.client.HTTPException) as error:
            raise _Cut(type(error).__name__) from None
        if not count:
            raise _Cut("IncompleteRead")
        return count


def of_memory(*parts: bytes | memoryview) -> Pieces:
    """What is in memory, part after part."""

    def pieces(offset: int) -> Iterator[memoryview]:
        for part in parts:
            view = memoryview(part)[offset:]
            offset = max(0, offset - len(part))
            for begin in itertools.count(0, PIECE):
                if begin >= len(view):
                    break
                yield view[begin : begin + PIECE]

    return pieces


def of_file(file: BinaryIO) -> Pieces:
    """What is in a file."""

    def pieces(offset: int) -> Iterator[memoryview]:
        file.seek(offset)
        while piece := file.read(PIECE):
            yield memoryview(piece)

    return pieces
