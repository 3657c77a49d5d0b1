"""What a device says to a Node: the model-centric routes over one connection that is kept, and made again when lost."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import re
import secrets
import time
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec

from grid_jupyter.client.measuring import Told
from grid_jupyter.errors import (
    GridError,
    InvalidMessageError,
    NodeUnavailableError,
    ResponseSignatureError,
    TooSlowError,
)
from grid_jupyter.link.http import Address, reported
from grid_jupyter.link.kept import LARGE, Kept
from grid_jupyter.wire.places import WITH_MODEL, parted

PATIENCE_S = 60.0
"""How long a Node that does not answer is asked again."""
WAIT_S = 25
"""How long the Node may think about a request for a place, until there is one."""
_NEXT_S = 1
"""The same for one that goes with a report: whoever trained is not kept waiting for long to know that it counts."""
_INLINE = 1 << 20
"""Bytes of a model that may come with a place."""
MODEL_TRIES = 3
"""How often a model is fetched of which other bytes come than were told of."""
OTHER_MODEL = (
    "the model that comes from {} is not the one that it told of: its SHA-256 is another one, each time. Something "
    "between here and there changes or keeps answers (a proxy, a cache), or the Node's disk is damaged: ask its owner"
)
_SPEED_BYTES = 1 << 20
_OFFSET = re.compile(r"[0-9]{1,15}")
_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0


class TrainingLine:
    """The routes of one Node that devices use. One thread at a time; every method raises what the Node reports, and
    NodeUnavailableError where it does not answer for `patience_s`."""

    def __init__(self, address: Address, patience_s: float = PATIENCE_S, *, reuses: bool = False) -> None:
        """`reuses`: a large answer comes into the memory of the one before, whose pages are there already."""
        self.address = address
        self._kept = Kept(address, reuses=reuses)
        self._patience_s = patience_s
        self._nonce = ""  # of the request for a place that has no answer yet
        self._next: tuple[str, dict[str, Any]] | None = None  # the answer to one that went with a report, and whose
        self._small: tuple[str, bytes] | None = None  # a model that came with its place, and the key of that

    def close(self) -> None:
        """Let the connection go."""
        self._kept.close()

    def authenticate(
        self, model: str, version: str | None, auth_token: str | None, push_token: str | None = None
    ) -> tuple[str, bool]:
        """A worker_id, and whether the training wants to know how fast the connection is."""
        body: dict[str, Any] = {"model_name": model, "ram_size": _ram_gb()}
        if version is not None:
            body["model_version"] = version
        if auth_token is not None:
            body["auth_token"] = auth_token
        if push_token is not None:
            body["fcm_device_token"] = push_token
        told = self._json("/model-centric/authenticate", body)
        return str(told["worker_id"]), bool(told["requires_speed_test"])

    def cycle_request(
        self,
        worker_id: str,
        model: str,
        version: str | None,
        speeds: dict[str, float],
        wait_s: float = WAIT_S,
        start_key: str = "",
    ) -> dict[str, Any]:
        """A place, or a rejection. `start_key` is that of the invitation, if there was one."""
        came, self._next = self._next, None
        if came is not None and came[0] == worker_id:
            return came[1]
        asked = {"worker_id": worker_id, "model": model, "version": version, "cycle_start_request_key": start_key}
        answer = self._json("/model-centric/cycle-request", {**asked, **self._wanted(speeds, wait_s)})
        self._nonce = ""
        return answer

    def _wanted(self, speeds: dict[str, float], wait_s: float) -> dict[str, Any]:
        """A place as it is asked for. Until there is an answer it is the same one, however often it is asked for."""
        self._nonce = self._nonce or secrets.token_hex(16)
        return {**speeds, "wait_s": wait_s, "nonce": self._nonce, "inline_bytes": _INLINE}

    def get_model(self, worker_id: str, request_key: str, model_id: int, sha256: str) -> bytes | bytearray:
        """The checkpoint to train, as a safetensors file whose SHA-256 the place has told; of a line that `reuses`,
        good until the next is fetched. Raises ResponseSignatureError where other bytes come, again and again."""
        if self._small is not None and self._small[0] == request_key:
            if hashlib.sha256(self._small[1]).hexdigest() == sha256:
                return self._small[1]
            self._small = None
        query = urlencode({"worker_id": worker_id, "request_key": request_key, "model_id": model_id})
        for _ in range(MODEL_TRIES):
            said = self._exchange("GET", f"/model-centric/get-model?{query}", hashed=True)
            if said.sha256 == sha256:
                return said.data
        raise ResponseSignatureError(OTHER_MODEL.format(self.address.url))

    def get_plan(self, worker_id: str, request_key: str, plan_id: int) -> bytes:
        """A plan's document."""
        query = urlencode({"worker_id": worker_id, "request_key": request_key, "plan_id": plan_id})
        return bytes(self._exchange("GET", f"/model-centric/get-plan?{query}").data)

    def report(
        self,
        worker_id: str,
        request_key: str,
        diff: bytes | bytearray,
        samples: int | None,
        *,
        zipped: bool,
        told: Told | None = None,
        then: dict[str, float] | None = None,
    ) -> None:
        """Hand in a diff, a safetensors file, and what was measured. After a lost connection it goes on where
        it was, or is sent again; it counts once. `then`: ask for the next place with it, with these speeds; the next
        `cycle_request` has the answer."""
        asked: dict[str, Any] = {"worker_id": worker_id, "request_key": request_key}
        if samples is not None:
            asked["num_samples"] = samples
        if told is not None and told.metrics:
            asked["metrics"], asked["metrics_samples"] = msgspec.json.encode(told.metrics), told.samples
        if then is not None:
            asked["next"] = msgspec.json.encode(self._wanted(then, _NEXT_S))
        headers = {"Content-Type": "application/octet-stream"}
        if zipped:
            diff, headers["Content-Encoding"] = gzip.compress(diff, 1), "gzip"
        path = f"/model-centric/report?{urlencode(asked)}"
        said = self._exchange("POST", path, diff, headers, goes_on=len(diff) > LARGE)
        found = None if then is None or not said.data else self._decoded(said).get("next")
        if isinstance(found, dict):
            self._nonce = ""
            # with a timeout there is no place yet: whoever asks by itself may wait for longer
            self._next = None if "timeout" in found else (worker_id, found)

    def speeds(self, worker_id: str) -> dict[str, float]:
        """ping in ms, download and upload in KiB/s, of a MiB each."""
        path = f"/model-centric/speed-test?{urlencode({'worker_id': worker_id, 'random': os.urandom(8).hex()})}"
        began = time.monotonic()
        self._exchange("GET", f"{path}&is_ping=1")
        ping = time.monotonic() - began
        connection = self.address.connect()
        try:
            began = time.monotonic()
            connection.request("GET", self.address.path + path)
            got = len(connection.getresponse().read(_SPEED_BYTES))
            down = time.monotonic() - began
        except (OSError, http.client.HTTPException) as error:
            raise self._unavailable(error) from None
        finally:
            connection.close()  # the rest of the sample is not wanted
        began = time.monotonic()
        self._exchange("POST", path, os.urandom(_SPEED_BYTES), {"Content-Type": "application/octet-stream"})
        up = time.monotonic() - began
        return {
            "ping": ping * 1000,
            "download": got / 1024 / max(down, 1e-6),
            "upload": _SPEED_BYTES / 1024 / max(up, 1e-6),
        }

    def _json(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        said = self._exchange("POST", path, msgspec.json.encode(body), {"Content-Type": "application/json"})
        return self._decoded(said)

    def _decoded(self, said: _Said) -> dict[str, Any]:
        """An answer in JSON; a model that came with it stays here."""
        try:
            data, model = parted(said.data) if said.media == WITH_MODEL else (said.data, None)
            answer = msgspec.json.decode(data, type=dict[str, Any])
        except (msgspec.MsgspecError, InvalidMessageError):
            raise GridError(f"{self.address.url} answered with something else than expected") from None
        if model is not None:
            place = answer.get("next", answer)
            self._small = (str(place.get("request_key")), model) if isinstance(place, dict) else None
        return answer

    def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | bytearray | None = None,
        headers: dict[str, str] | None = None,
        *,
        goes_on: bool = False,
        hashed: bool = False,
    ) -> _Said:
        """With `goes_on`, a body whose connection was lost is sent from where it is known to be; `hashed`: with the
        SHA-256 of the answer."""
        deadline, pause = time.monotonic() + self._patience_s, _PAUSE_S
        told, lost, reached, slow_at = headers or {}, False, 0, -1
        digest = None
        while True:
            try:
                stands = self._stands(path) if goes_on and lost else _Stands()
                if stands.offset > reached:  # a slow line gets on
                    reached, deadline = stands.offset, time.monotonic() + self._patience_s
                if stands.complete:
                    return _Said("", b"")
                if stands.offset and body is not None:
                    rest = memoryview(body)[stands.offset :]
                    answer = self._kept.exchange("PATCH", path, rest, {**told, "Upload-Offset": str(stands.offset)})
                else:
                    digest = hashlib.sha256() if hashed else None
                    seen = None if digest is None else digest.update
                    answer = self._kept.exchange(method, path, body, told, seen)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if time.monotonic() + pause > deadline:
                    raise self._unavailable(error) from None
                time.sleep(pause)
                pause = min(_LONGEST_PAUSE_S, pause * 2)
                lost = True
                continue
            if answer.status == TooSlowError.status and slow_at < stands.offset <= len(body or b""):
                self.close()  # what came is kept, as when it is cut
                slow_at, goes_on, lost = stands.offset, True, True
                continue
            if answer.status != 200:
                raise reported(answer.status, bytes(answer.data), self.address.url)
            sha256 = "" if digest is None else digest.hexdigest()
            return _Said(answer.headers.get("content-type", ""), answer.data, sha256)

    def _stands(self, path: str) -> _Stands:
        """How much of a body came before its connection was lost."""
        answer = self._kept.exchange("HEAD", path, None, {})
        if answer.status != 200:
            return _Stands()  # it is sent from the start, and the answer to that says what is wrong
        offset = answer.headers.get("upload-offset", "0")
        return _Stands(int(offset) if _OFFSET.fullmatch(offset) else 0, answer.headers.get("upload-complete") == "?1")

    def _unavailable(self, error: Exception) -> NodeUnavailableError:
        return NodeUnavailableError(
            f"{self.address.url} does not answer ({type(error).__name__}): is it running, and is the address right?"
        )


class _Said(NamedTuple):
    media: str
    data: bytes | bytearray
    sha256: str = ""


class _Stands(NamedTuple):
    offset: int = 0
    complete: bool = False


def _ram_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
