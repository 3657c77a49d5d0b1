"""Data sets on their way in: bytes that come, those that were cut off and may go on, those that wait for Publish."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from grid_jupyter.errors import (
    Conflict,
    InvalidDataError,
    LimitExceededError,
    ObjectNotFoundError,
    SendNotPermittedError,
)
from grid_jupyter.identity.accounts import Account
from grid_jupyter.store.blobs import Blob, BlobStore, Upload
from grid_jupyter.wire.safetensors import BlobTensor, read_header

PUBLISH = "can_upload_data"
"""The right to publish."""
UNCLAIMED_S = 3600.0
"""How long an upload waits for the Publish that names it."""
UNFINISHED_S = 300.0
"""How long an upload that was cut is kept for the rest of it."""
KEEPING_S = 20.0
"""How long who asks how far an upload is waits for an object store to take it."""
MAX_UNFINISHED = 8
"""Uploads of one account that come in, or were cut; the oldest cut one makes room for another."""

Key = tuple[str, str]
"""The publisher's name, and the id that they gave the upload."""


@dataclass(frozen=True)
class Arrived:
    """An upload that is here as a whole, and is what it claims to be."""

    blob: Blob
    tensors: tuple[BlobTensor, ...]
    at: float


class Coming:
    """An upload that comes in over one connection at a time: `turn` says which one counts."""

    def __init__(self, upload: Upload, size: int) -> None:
        self.size = size
        self.upload = upload
        self.turn = 0
        self.writing = False
        self.before = 0  # bytes that were here when this turn began
        self.lock = asyncio.Lock()  # a piece is being written, or all of it is made a blob
        self.ending: asyncio.TimerHandle | None = None
        self._dropped = False

    def begin_turn(self) -> int:
        """Whoever wrote until now writes no more; the number of the new turn."""
        self.turn += 1
        self.writing, self.before = True, self.upload.size
        if self.ending is not None:
            self.ending.cancel()
        return self.turn

    async def write(self, turn: int, data: bytes | bytearray | memoryview) -> None:
        """Append bytes, off the event loop. Raises Conflict for a turn that is over, InvalidDataError for too many
        bytes, StorageFullError."""
        async with self.lock:
            if turn != self.turn or self.upload.ended:
                raise Conflict("this upload goes on elsewhere, or was given up")
            if len(data) > self.size - self.upload.size:
                raise InvalidDataError("more bytes came than were told")
            try:
                await asyncio.to_thread(self.upload.write, data)
            finally:
                if self._dropped:
                    self.upload.abandon()

    async def settled(self) -> None:
        """Nobody writes to its file, or keeps it."""
        async with self.lock:
            pass

    def drop(self) -> None:
        """Give it up, as soon as nobody writes to its file."""
        self.begin_turn()
        self._dropped = True
        if not self.lock.locked():
            self.upload.abandon()


class Uploads:
    """All uploads of data sets to one Node, by those who may publish; or of something that everybody may bring."""

    def __init__(
        self,
        blobs: BlobStore,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        for_everybody: bool = False,
    ) -> None:
        self.unfinished_s, self.keeping_s = UNFINISHED_S, KEEPING_S
        self._for_everybody = for_everybody
        self._blobs = blobs
        self._max_bytes = max_bytes
        self._clock = clock
        self._coming: dict[Key, Coming] = {}
        self._arrived: dict[Key, Arrived] = {}

    # -------------------------------------------------------------- bytes that come

    async def begin(self, account: Account, upload_id: str, nbytes: int) -> Coming:
        """Room for the bytes of a data set; an upload of the same id that did not end is given up.

        Raises SendNotPermittedError, LimitExceededError, StorageFullError.
        """
        if not self._for_everybody:
            check_may_publish(account)
        if nbytes > self._max_bytes:
            raise LimitExceededError(
                f"an upload of {nbytes} bytes is over this Node's limit of {self._max_bytes}; "
                f"its owner can raise it with --max-upload"
            )
        key = account.username, upload_id
        self.give_up(key)
        if self._for_everybody:
            waiting = sum(one.blob.nbytes for name, one in self._arrived.items() if name[0] == account.username)
            if waiting + nbytes > self._max_bytes:
                raise LimitExceededError(
                    f"{waiting} bytes of yours have arrived here and wait to be submitted; submit them, or ask again "
                    f"in an hour: at most {self._max_bytes} wait at once"
                )
        others = [one for one in self._coming if one[0] == account.username]
        if len(others) >= MAX_UNFINISHED:
            resting = next((one for one in others if not self._coming[one].writing), None)
            if resting is None:
                raise LimitExceededError(f"at most {MAX_UNFINISHED} uploads of one account come in at once")
            self.give_up(resting)
        coming = Coming(await asyncio.to_thread(self._blobs.begin, upload_id), nbytes)
        self.give_up(key)
        self._coming[key] = coming
        return coming

    def resume(self, account: Account, upload_id: str, offset: int) -> Coming:
        """An upload that goes on from a byte. Raises ObjectNotFoundError, Conflict if it stands at another one."""
        coming = self._at((account.username, upload_id))
        if coming.upload.size != offset:
            raise Conflict(f"this upload stands at byte {coming.upload.size}, not {offset}")
        return coming

    async def progress(self, account: Account, upload_id: str) -> tuple[int, bool]:
        """Bytes that are here, and whether that is all of them and they are kept; a while is waited for what is being
        kept just now. Whoever still sends is cut off, so that the number holds. Raises ObjectNotFoundError."""
        key = account.username, upload_id
        coming = self._coming.get(key)
        if coming is not None:
            self.end_turn(key, coming, coming.begin_turn())
            waiting = asyncio.ensure_future(coming.settled())  # the piece that is just being written counts
            _, late = await asyncio.wait({waiting}, timeout=self.keeping_s)
            if late:
                waiting.cancel()
                return coming.upload.size, False
        if key in self._arrived:
            return self._arrived[key].blob.nbytes, True
        return self._at(key).upload.size, False

    def _at(self, key: Key) -> Coming:
        coming = self._coming.get(key)
        if coming is None or coming.upload.ended:
            raise ObjectNotFoundError("there is no such upload here, or no longer; send it from the start")
        return coming

    def end_turn(self, key: Key, coming: Coming, turn: int) -> None:
        """The connection of this turn is done, or gone: what it brought is kept for a while."""
        if turn == coming.turn and self._coming.get(key) is coming:
            coming.writing = False
            loop = asyncio.get_running_loop()
            coming.ending = loop.call_later(self.unfinished_s, self._forget, key, coming, turn)

    def _forget(self, key: Key, coming: Coming, turn: int) -> None:
        if turn == coming.turn and self._coming.get(key) is coming:
            self.give_up(key)

    def give_up(self, key: Key) -> None:
        """Forget an upload that has not ended, whoever is sending it."""
        coming = self._coming.pop(key, None)
        if coming is not None:
            coming.drop()

    def close(self) -> None:
        """The Node ends, and what did not arrive with it."""
        for key in list(self._coming):
            self.give_up(key)

    # -------------------------------------------------------------- bytes that are here

    async def finish(self, account: Account, upload_id: str, coming: Coming) -> None:
        """Check that the bytes are what they claim, and keep them until they are published.

        Raises InvalidDataError, LimitExceededError, StorageFullError, NodeUnavailableError for an object store that is
        away; then nothing is kept.
        """
        key = account.username, upload_id
        async with coming.lock:
            if self._coming.get(key) is not coming:
                if key in self._arrived:
                    return  # it was finished already, and the answer lost
                raise Conflict("this upload goes on elsewhere, or was given up")
            if coming.upload.size != coming.size:
                raise InvalidDataError("the upload ended early; send the rest")
            try:
                blob = await asyncio.to_thread(coming.upload.commit)
            finally:  # not before: who asks how far it is waits for this
                if self._coming.get(key) is coming:
                    del self._coming[key]
            try:
                tensors = await asyncio.to_thread(self._tensors, blob.name)
            except (InvalidDataError, LimitExceededError):
                await asyncio.to_thread(self._blobs.delete, blob.name)
                raise
            now = self._clock()
            stale = [key for key, arrived in self._arrived.items() if now - arrived.at > UNCLAIMED_S]
            replaced = [self._arrived.pop(one) for one in [*stale, key] if one in self._arrived]
            self._arrived[key] = Arrived(blob, tensors, now)
        for arrived in replaced:
            await asyncio.to_thread(self._blobs.delete, arrived.blob.name)

    def _tensors(self, blob: str) -> tuple[BlobTensor, ...]:
        with self._blobs.reading(blob) as file:
            return read_header(file)[0]

    def waiting(self, username: str) -> int:
        """Bytes of an account that are here and were not claimed; of an upload that comes in just now, those that were
        here before."""
        arrived = sum(one.blob.nbytes for key, one in self._arrived.items() if key[0] == username)
        coming = [one for key, one in self._coming.items() if key[0] == username]
        return arrived + sum(one.before if one.writing else one.upload.size for one in coming)

    def arrived(self, key: Key) -> Arrived | None:
        """What waits for its Publish under this key."""
        return self._arrived.get(key)

    def claim(self, key: Key) -> Arrived | None:
        """Take it: it is published, or refused, and waits no more."""
        return self._arrived.pop(key, None)


def check_may_publish(account: Account) -> None:
    """Raises SendNotPermittedError."""
    if PUBLISH not in account.flags:
        raise SendNotPermittedError(
            f"{account.username} has no right to publish on this Node; its owner can give the role Publisher"
        )
