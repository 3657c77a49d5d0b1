"""Reports whose bytes come in, perhaps in parts: what is here stays for a while when a connection is lost."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grid_jupyter.errors import BadRequest, Conflict, InvalidDataError, LimitExceededError, ObjectNotFoundError
from grid_jupyter.store.blobs import Upload

if TYPE_CHECKING:
    from grid_jupyter.cycles.live import Live
    from grid_jupyter.cycles.metrics import Measured

UNFINISHED_S = 300.0
"""How long a report is kept whose connection was lost."""
SMALL = 64 << 10
"""Bytes of a report that is in memory until it is written and synced together with others."""
MAX_UNFINISHED = 256
"""How many of these are kept: each is an open file, and room for all of it."""


@dataclass(eq=False)
class Arriving:
    """A report on its way. One connection at a time brings it: `give_way` is called when another one does."""

    live: Live
    worker_id: str
    request_key: str
    limit: int
    give_way: Callable[[], None] = lambda: None
    comes: bool = True
    measured: Measured | None = None  # what came along
    samples: int | None = None
    size: int = 0
    """Bytes of its body, as it was announced."""
    received: int = 0
    """Bytes of its body that are here."""
    upload: Upload | None = None
    unzip: Any = None
    turn: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    forgetting: asyncio.TimerHandle | None = None

    def begin_turn(self, give_way: Callable[[], None] = lambda: None) -> int:
        """Another connection takes over, or nobody."""
        self.turn += 1
        older, self.give_way = self.give_way, give_way
        if self.forgetting is not None:
            self.forgetting.cancel()
            self.forgetting = None
        older()
        return self.turn

    async def write(self, turn: int, data: bytes | bytearray | memoryview) -> None:
        """Bytes of the body, in order. Raises Conflict for a connection that had to give way, InvalidDataError,
        LimitExceededError, StorageFullError; then nothing is kept."""
        async with self.lock:
            upload = self.upload
            if turn != self.turn or upload is None:
                raise GaveWay
            try:
                if self.unzip is None and upload.holds(len(data)):  # quicker than the way to another thread
                    append(upload, data, None, self.limit)
                else:
                    await asyncio.to_thread(append, upload, data, self.unzip, self.limit)
                self.received += len(data)
            finally:
                if self.upload is None:  # dropped meanwhile
                    upload.abandon()

    def whole(self) -> Upload:
        """All of it, which is the caller's from here on. Raises InvalidDataError where it ends early."""
        upload = self.upload
        if upload is None or self.received != self.size or (self.unzip is not None and not self.unzip.eof):
            raise InvalidDataError("the report ends early; send all of it")
        self.upload = None
        return upload

    def drop(self) -> None:
        """Forget what came of it."""
        self.begin_turn()
        upload, self.upload = self.upload, None
        if upload is not None and not self.lock.locked():  # its file must stay open while a thread writes to it
            upload.abandon()


class GaveWay(Conflict):
    """The report of this place is brought by another connection."""

    def __init__(self) -> None:
        super().__init__("the report of this place was begun again elsewhere, and only the newer one counts")


class Arrivals:
    """All reports that are on their way, by the key of their place."""

    def __init__(self, at: Callable[[str], None], gone: Callable[[Arriving, int], None]) -> None:
        """`gone` is told of a report of which no more bytes come, and how many stay."""
        self.unfinished_s = UNFINISHED_S
        self._at, self._gone = at, gone
        self._arriving: dict[str, Arriving] = {}

    def begin(self, arriving: Arriving) -> Arriving:
        """A report from its start; what came for this place before is dropped."""
        older = self._arriving.pop(arriving.request_key, None)
        self._arriving[arriving.request_key] = arriving
        if older is not None:
            self._let_go(older)
            older.drop()
        return arriving

    def resume(self, request_key: str, offset: int) -> Arriving:
        """A report that goes on from a byte. Raises ObjectNotFoundError, Conflict where it stands at another one."""
        arriving = self._of(request_key)
        if arriving.received != offset:
            raise Conflict(f"this report stands at byte {arriving.received}, not {offset}")
        return arriving

    async def progress(self, request_key: str) -> int:
        """Bytes of the body that are here. Whoever still sends is cut off, so that the number holds.

        Raises ObjectNotFoundError.
        """
        arriving = self._of(request_key)
        turn = arriving.begin_turn()
        async with arriving.lock:
            pass  # the piece that is just being written counts
        self.leave(arriving, turn)
        return self._of(request_key).received

    def _of(self, request_key: str) -> Arriving:
        arriving = self._arriving.get(request_key)
        if arriving is None or arriving.upload is None or arriving.upload.ended:
            raise ObjectNotFoundError("nothing of a report is here, or no longer; send it from the start")
        return arriving

    def leave(self, arriving: Arriving, turn: int) -> None:
        """The connection of this turn is gone: what it brought is kept for a while."""
        if turn == arriving.turn and self._arriving.get(arriving.request_key) is arriving:
            arriving.give_way = lambda: None
            if arriving.upload is None:  # its file could not be made: nothing is here, and no room is kept for it
                self.give_up(arriving)
                return
            self.make_room(MAX_UNFINISHED - 1)
            loop = asyncio.get_running_loop()
            arriving.forgetting = loop.call_later(self.unfinished_s, self.give_up, arriving)
            self._at("report-cut")

    def make_room(self, most: int = 0) -> bool:
        """Of those that were cut only so many stay: nobody fills the Node with what never goes on. Says if so."""
        cut = [one for one in self._arriving.values() if one.forgetting is not None]
        gone = cut[: max(0, len(cut) - most)]
        for older in gone:
            self.give_up(older)
        return bool(gone)

    def end(self, arriving: Arriving, kept: int = 0) -> None:
        """No more bytes of it come; so many stay."""
        self._let_go(arriving, kept)
        if self._arriving.get(arriving.request_key) is arriving:
            del self._arriving[arriving.request_key]

    def _let_go(self, arriving: Arriving, kept: int = 0) -> None:
        if arriving.comes:
            arriving.comes = False
            self._gone(arriving, kept)

    def give_up(self, arriving: Arriving) -> None:
        """Forget it: it was refused, or nobody sent the rest."""
        self.end(arriving)
        arriving.drop()

    def close(self) -> None:
        """The Node ends, and what did not arrive with it."""
        for arriving in list(self._arriving.values()):
            self.give_up(arriving)


_PIECE = 1 << 20
"""Bytes that are unpacked at a time."""


def unzip_of(encoding: str) -> Any:
    """What unpacks a Content-Encoding; None for bytes that come as they are. Raises BadRequest."""
    if encoding == "identity":
        return None
    if encoding != "gzip":
        raise BadRequest("a report comes as it is, or with Content-Encoding: gzip")
    return zlib.decompressobj(31)


def append(upload: Upload, data: bytes | bytearray | memoryview, unzip: Any, limit: int) -> None:
    """Write what came, never more than the limit and a byte. Raises InvalidDataError, LimitExceededError,
    StorageFullError."""
    if unzip is not None:
        behind = unzip.eof and data
        try:
            while data and not unzip.eof:  # a piece at a time: a MiB may come to a GiB
                piece = unzip.decompress(data, min(_PIECE, limit - upload.size + 1))
                _write(upload, piece, limit)
                data = unzip.unconsumed_tail
        except zlib.error:
            raise InvalidDataError("the report is said to be gzip'ed, and is not") from None
        if behind or unzip.unused_data:  # zlib would keep all of it in memory
            raise InvalidDataError("there is more behind the end of the gzip'ed report")
        return
    _write(upload, data, limit)


def _write(upload: Upload, data: bytes | bytearray | memoryview, limit: int) -> None:
    if upload.size + len(data) > limit:
        raise LimitExceededError(f"a report of this model has at most {limit} bytes")
    upload.write(data)
