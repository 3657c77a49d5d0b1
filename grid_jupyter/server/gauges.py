"""What a Node or Network measures of itself, as Prometheus reads it. Labels are our own words, no stranger's."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from tornado.web import RequestHandler

from grid_jupyter.errors import NotAuthenticatedError, NotFound
from grid_jupyter.push.bus import EVENTS, Bus
from grid_jupyter.store.settings import SettingTable

LAG_S = 0.5
"""How often the event loop is asked how late it is."""
TOKEN = "scrape-token"  # noqa: S105 - the name of a setting
PREFIX = "gjm1_"
_LATENCIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_LAGS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class Overview(Protocol):
    """Who knows how the process stands."""

    role: str

    async def tell(self) -> dict[str, Any]:
        """Figures by name, as NodeOverview and NetworkOverview have them."""
        ...


class Gauges:
    """All that one process measures. `start` it in the running event loop."""

    def __init__(self, overview: Overview, settings: SettingTable, bus: Bus | None = None) -> None:
        self._overview = overview
        self._settings = settings
        self._told: dict[str, Any] = {}
        self._events = dict.fromkeys(sorted(EVENTS), 0)
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        self._requests = Histogram(
            "grid_http_request_duration_seconds",
            "Time to answer a request, by the handler that did; of a WebSocket, how long it was open.",
            ("door", "handler", "method", "status"),
            buckets=_LATENCIES,
            registry=self._registry,
        )
        self._answered: dict[tuple[str, str, str, int], Histogram] = {}  # to look a label up takes its time
        self._lag = Histogram(
            "grid_event_loop_lag_seconds",
            "How much later than asked for the event loop came round.",
            buckets=_LAGS,
            registry=self._registry,
        )
        self._registry.register(_Figures(self._families))
        self._looking: asyncio.Task[None] | None = None
        if bus is not None:
            bus.subscribe(lambda event: self._happened(event.name))

    def start(self) -> None:
        """Begin to look at the event loop."""
        self._looking = asyncio.create_task(self._look(), name="event loop's lag")

    async def stop(self) -> None:
        """End that."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    def answered(self, handler: RequestHandler, door: str) -> None:
        """A request was answered. A path or a method of a stranger's own becomes no label."""
        method = handler.request.method or ""
        method = method if method in RequestHandler.SUPPORTED_METHODS else "other"
        key = door, type(handler).__name__, method, handler.get_status() // 100
        found = self._answered.get(key)
        if found is None:
            found = self._answered[key] = self._requests.labels(door, key[1], method, f"{key[3]}xx")
        found.observe(handler.request.request_time())

    async def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        self._told = await self._overview.tell()
        return generate_latest(self._registry)

    # -------------------------------------------------------------- who may scrape

    async def make_token(self) -> str:
        """A token that reads this and nothing else; the one before ends. Only its digest is kept."""
        token = PREFIX + secrets.token_urlsafe(32)
        await self._settings.set(TOKEN, _digest(token))
        return token

    async def end_token(self) -> bool:
        """No token counts any more; whether one did."""
        was = await self._settings.get(TOKEN)
        await self._settings.set(TOKEN, "")
        return bool(was)

    async def admit(self, token: str) -> None:
        """Raises NotFound while no token was made, NotAuthenticatedError for another one."""
        known = await self._settings.get(TOKEN)
        if not known:
            raise NotFound("there is nothing here")
        if not hmac.compare_digest(known, _digest(token)):
            raise NotAuthenticatedError("this needs the token of 'jupyter grid metrics --token make'")

    # -------------------------------------------------------------- what is told

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_S
            await asyncio.sleep(LAG_S)
            self._lag.observe(max(0.0, loop.time() - due))

    def _happened(self, event: str) -> None:
        self._events[event] += 1

    def _families(self) -> list[Metric]:
        told = self._told
        if not told:
            return []
        versions = {key: str(value or "") for key, value in told["versions"].items()}
        info = {"role": self._overview.role, "isolation": told.get("isolation", ""), **versions}
        found: list[Metric] = [
            InfoMetricFamily("grid", "What runs here.", value=info),
            _gauge("grid_stored_bytes", "Bytes on the disk, by what they are of.", "kind", told["disk"]["used"]),
            GaugeMetricFamily("grid_disk_free_bytes", "Room on the disk.", value=told["disk"]["free"]),
            GaugeMetricFamily("grid_disk_size_bytes", "Size of the disk.", value=told["disk"]["size"]),
        ]
        if self._overview.role == "network":
            return [*found, GaugeMetricFamily("grid_nodes_alive", "Nodes that live.", value=told["nodes"])]
        sessions, trainings = told["sessions"], told["trainings"]
        states = {key: sessions[key] for key in ("connected", "computing")}
        return [
            *found,
            _gauge("grid_quota_bytes", "What may be stored at most, by what it is of.", "kind", told["quotas"]),
            _gauge("grid_sessions", "Sessions.", "state", states),
            GaugeMetricFamily("grid_sessions_limit", "Sessions that may compute at once.", value=sessions["at_most"]),
            _gauge("grid_workers", "Workers.", "state", told["workers"]),
            _gauge("grid_jobs", "Jobs.", "state", told["jobs"]),
            GaugeMetricFamily("grid_datasets", "Data sets.", value=told["datasets"]),
            _gauge("grid_trainings", "Models that devices train.", "phase", trainings["phases"]),
            GaugeMetricFamily("grid_training_cycles_completed", "Of trainings here.", value=trainings["completed"]),
            GaugeMetricFamily("grid_training_devices", "With a place in open cycles.", value=trainings["devices"]),
            GaugeMetricFamily("grid_training_reports", "That count in open cycles.", value=trainings["reports"]),
            _counter("grid_reports", "Reports of devices since the start.", "outcome", told["reports"]),
            _counter("grid_training_events", "Events of trainings since the start.", "event", self._events),
            GaugeMetricFamily("grid_network_joined", "Whether it is joined to a Network.", value=told["joined"]),
        ]


class _Figures(Collector):
    def __init__(self, families: Any) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        found: list[Metric] = self._families()
        return found


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counter(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
