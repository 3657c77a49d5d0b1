"""What this process knows of places in open cycles without asking the database: who holds one, who has reported.

It only spares a look at the rows: whatever changes them is decided by a transaction.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grid_jupyter.cycles.live import Live
    from grid_jupyter.store.trainings import StoredCheckpoint

MOST = 16_384
"""Places that are known at one time; of more, the older ones are looked up."""


@dataclass(frozen=True)
class Place:
    """A place that was given in this attempt at a cycle, and is not reported in."""

    live: Live
    worker_id: str
    attempt: int
    sequence: int
    checkpoint: StoredCheckpoint
    """What it trains."""


class KnownPlaces:
    """The places of all trainings, by the digest of their keys."""

    def __init__(self) -> None:
        self._places: OrderedDict[bytes, Place] = OrderedDict()

    def add(self, request_key: str, place: Place) -> None:
        """A place was given."""
        if place.live.terms.asynchronous:  # there it may be given up by what happens in another cycle
            return
        self._places[_digest(request_key)] = place
        while len(self._places) > MOST:
            self._places.popitem(last=False)

    def find(self, worker_id: str, request_key: str) -> Place | None:
        """The place of this device, while its attempt goes on; None: ask the database."""
        digest = _digest(request_key)
        place = self._places.get(digest)
        if place is None or place.worker_id != worker_id:
            return None
        if place.live.state.attempt != place.attempt or not place.live.takes(place.sequence):
            del self._places[digest]
            return None
        return place

    def drop(self, request_key: str) -> None:
        """It is reported in."""
        self._places.pop(_digest(request_key), None)


def _digest(request_key: str) -> bytes:
    return hashlib.sha256(request_key.encode("utf-8", "surrogatepass")).digest()
