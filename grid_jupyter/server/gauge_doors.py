"""The doors at which a process tells how it stands: the owner's, and one for a scraper that has the token for it."""

from __future__ import annotations

from typing import Any

from grid_jupyter.server.door import JsonDoor
from grid_jupyter.server.gauges import Gauges, Overview
from grid_jupyter.wire.owner import METRICS_TYPE


class GaugeDoor(JsonDoor):
    """Base of them."""

    @property
    def gauges(self) -> Gauges:
        """What the process measures."""
        gauges: Gauges = self.settings["gauges"]
        return gauges

    async def tell(self) -> None:
        """Answer in Prometheus' text format."""
        self.set_header("Content-Type", METRICS_TYPE)
        self.finish(await self.gauges.text())


class OwnerOverview(GaugeDoor):
    """GET: figures about the process."""

    async def get(self) -> None:
        overview: Overview = self.settings["overview"]
        self.reply(await overview.tell())


class OwnerMetrics(GaugeDoor):
    """GET: metrics for Prometheus."""

    async def get(self) -> None:
        await self.tell()


class OwnerScrapeToken(GaugeDoor):
    """POST: make the token for scraping anew. DELETE: end it."""

    async def post(self) -> None:
        self.reply({"token": await self.gauges.make_token()})

    async def delete(self) -> None:
        self.reply({"ended": await self.gauges.end_token()})


class Scrape(GaugeDoor):
    """GET: metrics, for who has the token that the owner made for that; no other credential counts."""

    async def get(self) -> None:
        scheme, _, token = self.request.headers.get("Authorization", "").partition(" ")
        await self.gauges.admit(token.strip() if scheme.lower() == "bearer" else "")
        await self.tell()


OWNER_GAUGE_RULES: list[tuple[str, Any]] = [
    (r"/owner/overview", OwnerOverview),
    (r"/owner/metrics", OwnerMetrics),
    (r"/owner/metrics/token", OwnerScrapeToken),
]
GAUGE_RULES: list[tuple[str, Any]] = [(r"/metrics", Scrape)]
