"""`<base_url>/grid/api/…`: what the JupyterLab panel and the widgets ask of this notebook server's Node.

For whoever may use this Jupyter server, who is the Node's owner; Jupyter authenticates and authorises. What is not
about the Node's process itself is handed to the owner's door of the Node, route by route.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import urlencode

import msgspec
from jupyter_server.auth.decorator import authorized, ws_authenticated
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from jupyter_server.extension.handler import ExtensionHandlerMixin
from tornado import web
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from grid_jupyter.errors import BadRequest, Conflict, GridError, LimitExceededError, NodeUnavailableError
from grid_jupyter.server.owner_client import OwnerClient
from grid_jupyter.server.supervisor import ChildProcess
from grid_jupyter.wire.messages import Message
from grid_jupyter.wire.owner import METRICS_TYPE
from grid_jupyter.wire.panel import NodeStatus, ProcessStatus, Reached

MAX_BODY_BYTES = 1 << 20
"""Length of a body, in bytes."""
ANSWER_S = 20.0
"""Time that the Node has for an answer, in seconds."""
LOOK_S = 0.25
"""How often the state of a Node's process is looked at while it tells nothing itself."""


T = TypeVar("T", bound=Message)


class Owned(Protocol):
    """What of the extension the doors need."""

    node: ChildProcess
    network_url: str

    @property
    def public(self) -> Reached | None: ...

    async def status(self) -> dict[str, Any]: ...
    async def begin(self) -> None: ...
    async def end(self) -> None: ...


class PanelDoor(ExtensionHandlerMixin, APIHandler):
    """Base of the routes; errors are {"error", "code", "message"}, as Jupyter's and the Node's doors have them."""

    auth_resource = "grid"

    @property
    def extension(self) -> Owned:
        """The server extension."""
        extension: Owned = self.settings["grid_jupyter"]
        return extension

    async def forward(self, method: str, path: str) -> None:
        """Answer with what the Node's owner's door answers."""
        body = self.request.body
        if len(body) > MAX_BODY_BYTES:
            raise LimitExceededError(f"a body of {len(body)} bytes is over the limit of {MAX_BODY_BYTES}")
        try:
            told = msgspec.json.decode(body, type=dict[str, Any]) if body else None
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            raise BadRequest("the body is not a JSON object") from None
        self.tell(await OwnerClient(self.socket, ANSWER_S).forward(method, path, told))

    @property
    def socket(self) -> str:
        """The owner's door of the Node. Raises NodeUnavailableError."""
        running = self.extension.node.running
        if running is None:
            raise NodeUnavailableError("the Node does not run; start it in the panel, or see why in My Node")
        return str(running.socket)

    def body(self, kind: type[T]) -> T:
        """The JSON body. Raises LimitExceededError, BadRequest."""
        body = self.request.body
        if len(body) > MAX_BODY_BYTES:
            raise LimitExceededError(f"a body of {len(body)} bytes is over the limit of {MAX_BODY_BYTES}")
        try:
            return msgspec.json.decode(body or b"{}", type=kind)
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            why = f": {error}" if isinstance(error, msgspec.ValidationError) else ""
            raise BadRequest(f"the body is not what this route takes{why}") from None

    def tell(self, answer: object) -> None:
        """Answer with JSON."""
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(msgspec.json.encode(answer))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """What the Node refuses is told in its own words; all else as Jupyter tells it."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if not isinstance(error, GridError):
            super().write_error(status_code, **kwargs)
            return
        self.set_status(error.status)
        wire = error.to_wire()
        self.tell({**wire, "message": wire["error"]})

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """A refusal is no fault of this server."""
        if isinstance(value, GridError):
            self.log.debug("%s %s refused: %s", self.request.method, self.request.path, type(value).__name__)
        else:
            super().log_exception(typ, value, tb)


class PanelStatus(PanelDoor):
    """GET <base_url>/grid/api/status: how the Node is."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.tell(await self.extension.status())


class PanelNode(PanelDoor):
    """POST <base_url>/grid/api/node/start, stop or restart: the Node's process. Answers with the status."""

    @web.authenticated
    @authorized
    async def post(self, verb: str) -> None:
        if self.extension.node.attached:
            raise Conflict("another program runs this Node: stop or start it there")
        if verb != "start":
            await self.extension.end()
        if verb != "stop":
            await self.extension.begin()
        self.tell(await self.extension.status())


class PanelDatasets(PanelDoor):
    """GET <base_url>/grid/api/datasets."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        await self.forward("GET", "/owner/datasets")


class PanelDataset(PanelDoor):
    """PATCH, DELETE <base_url>/grid/api/datasets/<id>."""

    @web.authenticated
    @authorized
    async def patch(self, dataset: str) -> None:
        await self.forward("PATCH", f"/owner/datasets/{dataset}")

    @web.authenticated
    @authorized
    async def delete(self, dataset: str) -> None:
        await self.forward("DELETE", f"/owner/datasets/{dataset}")


class PanelRequests(PanelDoor):
    """GET <base_url>/grid/api/requests?state=."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        state = self.get_query_argument("state", "")
        if state and not (state.isascii() and state.isalpha()):
            raise BadRequest("a state is one word, like approved")
        await self.forward("GET", f"/owner/requests?state={state}" if state else "/owner/requests")


class PanelRequest(PanelDoor):
    """POST <base_url>/grid/api/requests/<id>/approve, deny, ask or revoke."""

    @web.authenticated
    @authorized
    async def post(self, request: str, verb: str) -> None:
        await self.forward("POST", f"/owner/requests/{request}/{verb}")


class PanelJobs(PanelDoor):
    """GET <base_url>/grid/api/jobs."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        await self.forward("GET", "/owner/jobs")


class PanelJob(PanelDoor):
    """DELETE <base_url>/grid/api/jobs/<id>."""

    @web.authenticated
    @authorized
    async def delete(self, job: str) -> None:
        await self.forward("DELETE", f"/owner/jobs/{job}")


class PanelTrainings(PanelDoor):
    """GET, POST <base_url>/grid/api/trainings."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        await self.forward("GET", "/owner/trainings")

    @web.authenticated
    @authorized
    async def post(self) -> None:
        await self.forward("POST", "/owner/trainings")


class PanelMeasured(PanelDoor):
    """GET <base_url>/grid/api/trainings/metrics?name=&version=&after=."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        asked = {name: self.get_query_argument(name, "") for name in ("name", "version", "after")}
        given = urlencode({name: value for name, value in asked.items() if value})
        await self.forward("GET", f"/owner/trainings/metrics?{given}")


class PanelMetrics(PanelDoor):
    """GET <base_url>/grid/api/metrics: as text, for Prometheus."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        text = await OwnerClient(self.socket, ANSWER_S).text("/owner/metrics")
        self.finish(text, set_content_type=METRICS_TYPE)  # Jupyter sets its own with any other call


class PanelEvents(ExtensionHandlerMixin, WebSocketMixin, WebSocketHandler, JupyterHandler):
    """WebSocket <base_url>/grid/api/events: {status, changed} now, and whenever the Node or its process changes."""

    auth_resource = "grid"
    ping_interval = ping_timeout = 20.0  # seconds, as tornado reads them
    _following: asyncio.Task[None] | None = None
    _told: dict[str, Any] | None = None

    @ws_authenticated
    @authorized
    async def get(self, *args: Any, **kwargs: Any) -> None:
        await super().get(*args, **kwargs)

    def open(self) -> None:
        """Begin to tell. The mixin's own would ping a second time."""
        self.set_nodelay(True)
        self._following = asyncio.get_running_loop().create_task(self._follow(), name="grid events")

    def on_message(self, message: str | bytes) -> None:
        """There is nothing to be said here."""

    def on_close(self) -> None:
        if self._following is not None:
            self._following.cancel()

    async def _follow(self) -> None:
        extension: Owned = self.settings["grid_jupyter"]
        while True:
            status = await extension.status()
            if status["node"] is not None:
                status["node"].pop("uptime_s", None)  # it differs each time
            self._say(status, [])
            running = extension.node.running
            if running is not None:
                with contextlib.suppress(NodeUnavailableError):
                    await OwnerClient(running.socket, ANSWER_S).events(self._hand_on)
            await asyncio.sleep(LOOK_S)

    def _hand_on(self, line: dict[str, Any]) -> None:
        extension: Owned = self.settings["grid_jupyter"]
        self._say(supervised(extension.node, extension.public, line["status"]), line["changed"])

    def _say(self, status: dict[str, Any], changed: list[str]) -> None:
        if changed or status != self._told:
            self._told = status
            with contextlib.suppress(WebSocketClosedError):
                self.write_message(msgspec.json.encode({"status": status, "changed": changed}).decode())


def supervised(node: ChildProcess, public: Reached | None, own: dict[str, Any] | None) -> dict[str, Any]:
    """How a Node is: its supervisor's view, where it is reached through this server, and its own while it answers."""
    told: ProcessStatus = {
        "state": node.state,
        "detail": node.detail,
        "pid": node.running.pid if node.running else None,
        "restarts": node.restarts,
        "attached": node.attached,
        "public": public,
        "node": cast("NodeStatus | None", own),  # what another process said
    }
    return dict(told)


PANEL_RULES: list[tuple[str, type[JupyterHandler]]] = [
    (r"grid/api/status", PanelStatus),
    (r"grid/api/node/(start|stop|restart)", PanelNode),
    (r"grid/api/datasets", PanelDatasets),
    (r"grid/api/datasets/([0-9]{1,18})", PanelDataset),
    (r"grid/api/requests", PanelRequests),
    (r"grid/api/requests/([0-9]{1,18})/(approve|deny|ask|revoke)", PanelRequest),
    (r"grid/api/jobs", PanelJobs),
    (r"grid/api/jobs/([0-9a-f]{16})", PanelJob),
    (r"grid/api/trainings", PanelTrainings),
    (r"grid/api/trainings/metrics", PanelMeasured),
    (r"grid/api/metrics", PanelMetrics),
    (r"grid/api/events", PanelEvents),
]
