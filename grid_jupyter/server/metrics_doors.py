"""The Node's doors for what devices measure: told by devices, read by who hosts the model; a fork's names too."""

from __future__ import annotations

import csv
import io
from datetime import datetime, timezone
from typing import Any

from tornado.iostream import StreamClosedError

from grid_jupyter.cycles.metrics import Page
from grid_jupyter.errors import BadRequest
from grid_jupyter.server.door import Door
from grid_jupyter.server.node_streams import byte_number
from grid_jupyter.server.training_doors import TrainingDoor
from grid_jupyter.store.metrics import StoredMetrics
from grid_jupyter.wire import answers
from grid_jupyter.wire.metrics import MetricsReport, UploadStats

UPLOADED: answers.Told = {"status": "success", "message": "Stats have been uploaded."}
COLUMNS = ("cycle", "worker", "metric", "value", "samples", "time")
"""Of the CSV, and of the table in Python."""


class MeasuredDoor(TrainingDoor):
    """GET ?name=&version=&after=&format=: what devices measured, in the words of `_told`."""

    async def get(self) -> None:
        form = self.get_query_argument("format", "json")
        if form not in ("json", "csv"):
            raise BadRequest("metrics come as JSON (format=json) and as CSV (format=csv), in no other form")
        page = await self._page(byte_number(self.get_query_argument("after", "0")))
        if form == "csv":
            await self._csv(page)
        else:
            self.reply(self._told(page))

    async def _page(self, after: int) -> Page:
        account, version = await self.require(), self.get_query_argument("version", None)
        return await self.cycles.metrics.read(account, self.one("name"), version, after)

    def _told(self, page: Page) -> object:
        raise NotImplementedError

    async def _csv(self, page: Page) -> None:
        """All of it, in pieces: an answer is as long as the training was."""
        self.set_header("Content-Type", "text/csv; charset=utf-8")
        self.set_header("Content-Disposition", "attachment; filename=metrics.csv")
        lines, text = [COLUMNS], io.StringIO()
        writer = csv.writer(text, lineterminator="\r\n")
        try:
            while True:
                lines.extend(line for row in page.rows for line in _lines(row))
                writer.writerows(lines)
                self.write(text.getvalue())
                await self.flush()
                if not page.more:
                    break
                page = await self._page(page.next)
                lines.clear()
                text.seek(0)
                text.truncate()
        except StreamClosedError:
            return  # who asked has left
        self.finish()


class MetricsDoor(MeasuredDoor):
    """POST: metrics of a place. GET: what devices measured."""

    open_to_all = frozenset({"POST"})

    async def post(self) -> None:
        await self.cycles.metrics.take(self.body(MetricsReport))
        self.reply({"status": "success"})

    def _told(self, page: Page) -> object:
        return measured(page)


class TrainingMetrics(MeasuredDoor):
    """GET: the same by the names of 0.2.9's fork."""

    def _told(self, page: Page) -> object:
        stats: list[dict[str, float]] = [
            # names of metrics come from devices, and stand for no field of ours
            {**one.values, "cycle_id": one.cycle, "worker_id": one.worker, "num_samples": one.samples, "time": one.time}
            for one in page.rows
        ]
        told: answers.Stats = {"status": "success", "stats": stats, "next": page.next, "more": page.more}
        return told


class UploadStatsDoor(TrainingDoor):
    """POST: metrics of places, as 0.2.9's fork tells them."""

    open_to_all = frozenset({"POST"})

    async def post(self) -> None:
        await self.cycles.metrics.take_stats(self.body(UploadStats))
        self.reply(UPLOADED)


def measured(page: Page) -> answers.MetricsPage:
    """Metrics of a training, as JSON has them."""
    return {
        "name": page.name,
        "version": page.version,
        "metrics": list(map(_entry, page.rows)),
        "next": page.next,
        "more": page.more,
    }


def _entry(row: StoredMetrics) -> answers.Entry:
    return {"cycle": row.cycle, "worker": row.worker, "samples": row.samples, "time": row.time, "values": row.values}


def _lines(row: StoredMetrics) -> list[tuple[Any, ...]]:
    time = datetime.fromtimestamp(row.time, timezone.utc).isoformat(timespec="milliseconds")
    return [(row.cycle, row.worker, name, repr(value), row.samples, time) for name, value in sorted(row.values.items())]


METRICS_RULES: list[tuple[str, type[Door]]] = [
    (r"/model-centric/metrics/?", MetricsDoor),
    (r"/model-centric/upload_stats/?", UploadStatsDoor),
    (r"/model-centric/training-metrics/?", TrainingMetrics),
]
