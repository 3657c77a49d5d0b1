"""A device that is woken: it listens by the Node's WebSocket, and asks for a place when it is told to."""

from __future__ import annotations

import time
from collections import deque
from contextlib import ExitStack
from typing import Any

import msgspec
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from grid_jupyter.client.training_line import PATIENCE_S, TrainingLine
from grid_jupyter.errors import GridError, NodeUnavailableError, from_wire

LISTEN_S = 300.0
"""How long a device waits to be told before it asks all the same."""
_OPEN_S = 10.0
_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_WAKES = ("request_for_cycle", "cycle reset", "fl_completed")
_REMEMBERED = 1_000


class Invitations:
    """The requests of one device for places. Between two of them it sleeps until a notice comes."""

    def __init__(self, line: TrainingLine, worker_id: str, patience_s: float = PATIENCE_S) -> None:
        """A Node that does not answer is tried again for `patience_s`."""
        self._line, self._worker_id, self._patience_s = line, worker_id, patience_s
        self._socket: ClientConnection | None = None
        self._open_one = ExitStack()
        self._seen: deque[int] = deque(maxlen=_REMEMBERED)

    def close(self) -> None:
        """Listen no more."""
        self._socket = None
        self._open_one.close()

    def request(self, model: str, version: str | None, speeds: dict[str, float]) -> dict[str, Any]:
        """A place, or the answer that training is over. Raises NodeUnavailableError, and what the Node reports."""
        key = ""
        while True:
            self._open()
            answer = self._line.cycle_request(self._worker_id, model, version, speeds, wait_s=0, start_key=key)
            if answer["status"] == "accepted" or "timeout" not in answer:
                return answer
            key = "" if key else self._wait(max(LISTEN_S, float(answer["timeout"])))

    def _wait(self, timeout_s: float) -> str:
        """Sleep until it is time to ask; the key of the invitation, if there was one."""
        end = time.monotonic() + timeout_s
        while (left := end - time.monotonic()) > 0:
            try:
                notice = self._next(left)
            except (ConnectionClosed, OSError):
                self.close()
                return ""  # what was told meanwhile may have been missed
            if notice is None:
                break
            if notice.get("type") in _WAKES:
                return str(notice.get("cycle_start_request_key", ""))
        return ""

    def _next(self, timeout_s: float) -> dict[str, Any] | None:
        """The next notice that was not there before; acknowledged, and answered where it asks something."""
        end = time.monotonic() + timeout_s
        while True:
            told = self._receive(max(0.0, end - time.monotonic()))
            if told is None:
                return None
            notice = told.get("data")
            if told.get("type") != "push" or not isinstance(notice, dict) or not isinstance(notice.get("id"), int):
                continue  # the answer to something that was said
            self._say("notice-received", {"id": notice["id"]})
            if notice["id"] in self._seen:
                continue
            self._seen.append(notice["id"])
            if notice.get("type") == "worker_online_status":
                self._say("update-worker-status", {"worker_id": self._worker_id})
            return notice

    def _open(self) -> None:
        if self._socket is not None:
            return
        deadline, pause = time.monotonic() + self._patience_s, _PAUSE_S
        address = self._line.address
        while True:
            try:
                connection = connect(
                    f"{address.websocket_url}/", ssl=address.tls, open_timeout=_OPEN_S, proxy=None, max_size=1 << 20
                )
                self._socket = self._open_one.enter_context(connection)
                self._say("listen", {"worker_id": self._worker_id})
                self._listening()
            except (ConnectionClosed, InvalidHandshake, OSError) as error:
                self.close()
                if time.monotonic() + pause > deadline:
                    raise NodeUnavailableError(
                        f"{address.url} does not answer ({type(error).__name__}): is it running, and is the address "
                        "right?"
                    ) from None
                time.sleep(pause)
                pause = min(_LONGEST_PAUSE_S, pause * 2)
                continue
            return

    def _listening(self) -> None:
        """Wait for the answer to listen. Raises what it reports. A notice that comes before it comes again."""
        while True:
            told = self._receive(_OPEN_S)
            if told is None:
                raise ConnectionError("no answer")
            if told.get("type") == "model-centric/listen":
                data = told.get("data")
                if isinstance(data, dict) and "error" in data:
                    self.close()
                    raise from_wire(data.get("code"), data["error"])
                return

    def _receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message; None where none comes in time."""
        socket = self._connected()
        try:
            text = socket.recv(timeout_s)
        except TimeoutError:
            return None
        try:
            return msgspec.json.decode(text, type=dict[str, Any])
        except msgspec.MsgspecError:
            raise GridError(f"{self._line.address.url} said something else than expected") from None

    def _say(self, kind: str, data: dict[str, Any]) -> None:
        self._connected().send(msgspec.json.encode({"type": f"model-centric/{kind}", "data": data}).decode())

    def _connected(self) -> ClientConnection:
        if self._socket is None:
            raise ConnectionError("it was closed")
        return self._socket
