"""How devices of trainings are reached: their tokens and connections, the outbox and who empties it, owners' pushes."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence

from grid_jupyter.cycles.announcing import KEPT_S
from grid_jupyter.cycles.live import Ground, Live
from grid_jupyter.errors import BadRequest, Conflict, LimitExceededError, NotFound
from grid_jupyter.push.dispatch import Dispatcher, Settled
from grid_jupyter.push.notifier import Notifier, Outgoing
from grid_jupyter.push.sockets import Listeners, Send
from grid_jupyter.store.database import Database
from grid_jupyter.store.notices import NoticeRows, NoticeTable, StoredNotice
from grid_jupyter.store.records import DeviceRow
from grid_jupyter.store.trainings import TrainingRows, TrainingTable
from grid_jupyter.wire.answers import Notices
from grid_jupyter.wire.push import MAX_PUSH_DATA_BYTES, Notice, SavePushToken, SendPush, WorkerStatus

SLOW_GB = 2.0
"""A device with less memory than this counts as slow."""
PUSHES_AN_HOUR = 60
"""How many pushes of its owner's a Node sends in an hour, to one device or to many each."""
PURGE_S = 3_600.0
"""How often it is forgotten what became of old notices."""
PURGE_SOON_S = 0.5
"""How soon the next some hundred go, where there are more."""
_GIVEN_UP_SHOWN = 50


class StoredOutbox:
    """The outbox of the database, as the dispatcher wants it (push.dispatch.Outbox)."""

    def __init__(self, table: NoticeTable) -> None:
        self._table = table
        self._purged = 0.0

    async def due(self, now: float, most: int, skip: Collection[int]) -> list[Outgoing]:
        skipped = list(skip)
        return [_outgoing(one) for one in await self._table.transact(lambda rows: rows.due(now, most, skipped))]

    async def spread(self, now: float) -> bool:
        return await self._table.transact(lambda rows: rows.spread(now))

    async def settle(self, now: float, settled: Sequence[Settled]) -> None:
        def work(rows: NoticeRows) -> None:
            for one in settled:
                rows.settle(one.id, one.state, by=one.by, said=one.reason, attempts=one.attempts, due=one.due,
                            token=one.token)  # fmt: skip

        await self._table.transact(work)

    async def next(self, now: float) -> float | None:
        def work(rows: NoticeRows) -> float | None:
            if now >= self._purged + PURGE_S:
                if rows.purge(now):  # the rest of them soon, a transaction at a time
                    return now + PURGE_SOON_S
                self._purged = now
            return rows.next(now)

        return await self._table.transact(work)


class Pushing:
    """What devices say so that they can be woken, and what an owner has sent to them."""

    def __init__(
        self,
        database: Database,
        trainings: TrainingTable,
        lives: Mapping[int, Live],
        notifier: Notifier,
        ground: Ground,
    ) -> None:
        self.bus = ground.bus
        self._trainings, self._lives, self._clock = trainings, lives, ground.clock
        self._notices = NoticeTable(database)
        self._listeners = Listeners()
        self._notifier = notifier
        self._dispatcher = Dispatcher(
            StoredOutbox(self._notices), (self._listeners, notifier), self.bus, clock=ground.clock, at=ground.at
        )
        self._end: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Begin with what an earlier process left."""
        self._end = self.bus.subscribe(self._dispatcher.wake, ("notices-queued",))
        self._dispatcher.start()

    async def stop(self) -> None:
        """Let go; what has not gone is in the outbox."""
        self._end()
        self._end = lambda: None
        await self._dispatcher.stop()

    # -------------------------------------------------------------- devices

    def connected(self, live: Live, how: str) -> None:
        """Tell that a device came."""
        self.bus.publish("device-connected", model=live.stored.name, version=live.stored.version, how=how)

    async def save_token(self, body: SavePushToken) -> None:
        """A device can be reached by a push token. Raises NotFound, Conflict."""

        def note(rows: NoticeRows, device: DeviceRow) -> None:
            rows.save_token(device, body.fcm_device_token)
            if body.ram_size is not None:
                device.slow = body.ram_size < SLOW_GB

        await self._heard(body.worker_id, body.model, body.version, "save-fcm-token", note)

    async def status(self, body: WorkerStatus) -> None:
        """A device says that it is there, perhaps with a new token. Raises NotFound, Conflict."""

        def note(rows: NoticeRows, device: DeviceRow) -> None:
            if body.fcm_push_token is not None:
                rows.save_token(device, body.fcm_push_token)

        await self._heard(body.worker_id, body.model, body.version, "update-worker-status", note)

    async def listen(self, worker_id: str, send: Send) -> None:
        """A device takes notices by a connection, until `leave`. Raises NotFound."""
        await self._heard(worker_id, None, None, "listen", lambda rows, device: rows.listens(device))
        self._listeners.add(worker_id, send)
        self._dispatcher.wake()

    def leave(self, worker_id: str, send: Send) -> None:
        """That connection is gone."""
        self._listeners.remove(worker_id, send)

    def received(self, worker_ids: set[str], notice: int) -> None:
        """One of these devices has a notice."""
        self._listeners.received(worker_ids, notice)

    async def _heard(
        self,
        worker_id: str,
        model: str | None,
        version: str | None,
        how: str,
        note: Callable[[NoticeRows, DeviceRow], None],
    ) -> None:
        training = await self._trainings.transact(lambda rows: rows.device(worker_id).training_id)
        live = self._lives.get(training)
        if live is None:  # it is deleted just now
            raise NotFound("Federated Learning Process not found!")
        if model not in (None, live.stored.name) or version not in (None, live.stored.version):
            raise Conflict("this worker_id is for another model; authenticate for this one")
        await live.heard(worker_id, note)
        self.connected(live, how)

    # -------------------------------------------------------------- owners

    async def send(self, body: SendPush) -> int:
        """An owner's push; to how many devices it goes at most. Raises NotFound, BadRequest, LimitExceededError."""
        if not (body.title or body.text or body.data):
            raise BadRequest("an empty push says nothing: give a title, a text, or data")
        if sum(len(key.encode()) + len(text.encode()) for key, text in body.data.items()) > MAX_PUSH_DATA_BYTES:
            raise LimitExceededError(f"the data of a push has at most {MAX_PUSH_DATA_BYTES} bytes")
        now = self._clock()

        def work(rows: TrainingRows) -> int:
            training, notices = rows.find(body.model, body.version), rows.notices
            key = f"owner/{training.id}/{body.key or secrets.token_hex(16)}"
            if not notices.known(key) and notices.used("owner", now - 3_600) >= PUSHES_AN_HOUR:
                raise LimitExceededError(f"this Node sends at most {PUSHES_AN_HOUR} pushes of its owner's in an hour")
            facts = {"title": body.title, "text": body.text, "data": body.data}
            expires = now + KEPT_S
            if body.workers is None:
                notices.queue(key, training.id, "message", facts, to="all", origin="owner", now=now, expires=expires)
                return notices.reachable(training.id, 0.0, 1 << 30)
            found = notices.reached(training.id, body.workers)
            if not found:
                raise NotFound("none of these workers can be reached: they saved no push token, and do not listen")
            if notices.queue(key, training.id, "message", {}, to="named", origin="owner", now=now, expires=expires):
                for device in found:
                    notices.queue(f"{key}/device-{device}", training.id, "message", facts, to=device, origin="owner",
                                  now=now, expires=expires)  # fmt: skip
            return len(found)

        count = await self._trainings.transact(work)
        self._dispatcher.wake()
        return count

    async def told(self) -> Notices:
        """How notices stand: how many, and the newest that were given up. Nothing that names a device."""

        def work(rows: NoticeRows) -> Notices:
            counts = rows.counts()
            return {
                "push": self._notifier.name,
                "listening": len(self._listeners),
                "waiting": counts.get("waiting", 0),
                "sent": counts.get("sent", 0),
                "given_up": counts.get("given-up", 0),
                "newest_given_up": rows.given_up(_GIVEN_UP_SHOWN),
            }

        return await self._notices.transact(work)


def _outgoing(one: StoredNotice) -> Outgoing:
    notice = Notice(
        id=one.id, type=one.type, worker_id=one.worker_id, model=one.model, version=one.version, **one.facts  # type: ignore[arg-type]
    )  # fmt: skip
    return Outgoing(
        notice=notice, device=one.device, token=one.token, listens=one.listens, attempts=one.attempts,
        expires=one.expires,
    )  # fmt: skip
