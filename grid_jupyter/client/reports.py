"""How a device hands in what it trained: the form of the diff, what is kept of it, and that it counts once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from grid_jupyter.aggregation.diffs import FORMS, KEEP, packed, restored
from grid_jupyter.client.measuring import Told
from grid_jupyter.client.residual import Pending, Residual
from grid_jupyter.client.tensor_files import Array, room_for, write_arrays, write_into
from grid_jupyter.client.training_line import TrainingLine
from grid_jupyter.errors import BadRequest, Conflict, GridError, NodeUnavailableError, StorageFullError


class Reports:
    """The reports of one device to one training, all in the same form."""

    def __init__(
        self,
        line: TrainingLine,
        kind: str | None = None,
        *,
        keep: float = KEEP,
        residual: str | Path | None = None,
        zipped: bool = False,
    ) -> None:
        """`kind` is one of FORMS; None: the first that the Node takes. Raises BadRequest, InvalidDataError."""
        if kind is not None and kind not in FORMS:
            raise BadRequest(f"a diff travels as {', '.join(FORMS)}, not as {kind!r}")
        if not 0 < keep <= 1:
            raise BadRequest("keep is the part of a diff's values that topk sends: over 0, and at most 1")
        self._line, self._kind, self._keep, self._zipped = line, kind, keep, zipped
        self._file = bytearray()  # of the last report: the next one comes into its memory
        self._residual = None if residual is None else Residual(Path(residual))

    def __enter__(self) -> Reports:
        return self

    def __exit__(self, *_: object) -> None:
        if self._residual is not None:
            self._residual.close()

    def settle(self) -> None:
        """Send again the report of a device that was ended before it knew whether it counts.

        Raises NodeUnavailableError, StorageFullError; then the next start does.
        """
        if self._residual is not None and self._residual.pending is not None:
            try:
                self._settle(self._residual, self._residual.pending)
            except (NodeUnavailableError, StorageFullError):
                raise
            except GridError:
                return  # this Node knows nothing of it, and it was dropped

    def check(self, answer: Mapping[str, Any]) -> None:
        """Before a cycle is trained: whether its report could be handed in. Raises BadRequest."""
        kind, taken = self._form(answer), answer.get("diff_forms", FORMS[:1])
        if kind not in taken:
            raise BadRequest(f"this training takes no diffs as {kind}, but as {', '.join(taken)}")
        if kind == "topk" and self._residual is None:
            raise BadRequest(
                "topk sends a part of what was trained and keeps the rest for later: give a file for it (residual=)"
            )

    def send(
        self,
        worker_id: str,
        answer: Mapping[str, Any],
        before: Mapping[str, Array],
        after: Mapping[str, Array],
        samples: int,
        random: numpy.random.Generator,
        told: Told | None = None,
        then: dict[str, float] | None = None,
    ) -> bool:
        """Hand in what training made of a model, `before - after` where that has something else, and what was measured;
        False where it came too late. `then` as TrainingLine.report has it. Raises what the Node reports, and
        StorageFullError."""
        kind, residual, key = self._form(answer), self._residual, answer["request_key"]
        if kind == "float32":
            self._file, places = room_for(self._file, before)
            for name, array in before.items():
                numpy.subtract(array, after.get(name, array), out=places[name])
            return self._send(Pending(worker_id, key, samples, self._file), told, then)
        diff = {name: numpy.asarray(array - after.get(name, array)) for name, array in before.items()}
        if kind != "topk" or residual is None:
            self._file = write_into(self._file, packed(diff, kind, random))
            return self._send(Pending(worker_id, key, samples, self._file), told, then)
        residual.check(answer["model"], answer["version"], diff)
        whole = residual.added(diff)
        arrays = packed(whole, kind, keep=self._keep)
        sent = restored(arrays, whole)
        after = {name: array - sent[name] for name, array in whole.items() if array.dtype.kind == "f"}
        pending = Pending(worker_id, key, samples, write_arrays(arrays))
        residual.begin(pending, after)
        return self._settle(residual, pending, told, then)

    def _settle(
        self, residual: Residual, pending: Pending, told: Told | None = None, then: dict[str, float] | None = None
    ) -> bool:
        """Send a report of which this device does not know whether it counted, until it knows."""
        try:
            counted = self._send(pending, told, then)
        except (NodeUnavailableError, StorageFullError):
            raise  # it may count yet: the next start asks again
        except GridError:
            residual.dropped()
            raise
        if counted:
            residual.counted()
        else:
            residual.dropped()
        return counted

    def _send(self, pending: Pending, told: Told | None, then: dict[str, float] | None = None) -> bool:
        try:
            self._line.report(
                pending.worker_id, pending.request_key, pending.data, pending.samples, zipped=self._zipped, told=told,
                then=then,
            )  # fmt: skip
        except Conflict:
            return False
        return True

    def _form(self, answer: Mapping[str, Any]) -> str:
        return str(self._kind or answer.get("diff_forms", FORMS)[0])
