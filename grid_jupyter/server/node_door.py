"""The Node's doors: the data-centric routes of 0.2.9, and data sets over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from tornado.web import Application

from grid_jupyter.cycles.service import Cycles
from grid_jupyter.errors import NotFound
from grid_jupyter.node import policy
from grid_jupyter.node.service import GridNode
from grid_jupyter.node.uploads import Uploads
from grid_jupyter.server.accounts import NODE_ACCOUNT_RULES
from grid_jupyter.server.bulk_doors import BULK_RULES
from grid_jupyter.server.door import Door, application
from grid_jupyter.server.front_door import Front
from grid_jupyter.server.gauge_doors import GAUGE_RULES
from grid_jupyter.server.gauges import Gauges
from grid_jupyter.server.job_doors import JOB_RULES
from grid_jupyter.server.node_sockets import SessionDoor
from grid_jupyter.server.node_streams import STREAM_RULES, NodeDoor
from grid_jupyter.server.pace import Pace
from grid_jupyter.server.request_doors import REQUEST_RULES
from grid_jupyter.server.training_api import MODEL_CENTRIC_RULES
from grid_jupyter.wire.limits import MAX_NAME_CHARS, MAX_TAG_CHARS, MAX_TAGS
from grid_jupyter.wire.messages import Edit, Publish

_Tag = Annotated[str, msgspec.Meta(max_length=MAX_TAG_CHARS)]


class _Query(msgspec.Struct):
    query: Annotated[list[_Tag], msgspec.Meta(max_length=MAX_TAGS)]


class _ModelQuery(msgspec.Struct):
    model_id: Annotated[str, msgspec.Meta(max_length=MAX_NAME_CHARS)]


# ------------------------------------------------------------------ open to anyone


class Identity(NodeDoor):
    """GET: the Node's name."""

    open_to_all = frozenset({"GET"})

    async def get(self) -> None:
        self.reply({"success": True, "identity": self.node.name})


class Status(NodeDoor):
    """GET: it runs."""

    open_to_all = frozenset({"GET"})

    async def get(self) -> None:
        self.reply({"success": True, "status": "OpenGrid"})


class DatasetTags(NodeDoor):
    """GET: tags; without a credential those that their owners made public."""

    open_to_all = frozenset({"GET"})

    async def get(self) -> None:
        account = await self.account()
        caller = "" if account is None else account.username
        self.reply(await self.node.tags(public=account is None, caller=caller))


# ------------------------------------------------------------------ data sets


class GuestDoor(NodeDoor):
    """Base of what guests may use where the Node's owner allows guests."""

    def is_open(self) -> bool:
        return self.node.guests

    async def caller(self) -> str:
        """The caller's name; empty for a guest. Raises NotAuthenticatedError where guests may not be here."""
        account = await self.account()
        name = policy.GUEST if account is None else account.username
        policy.check_session(name, self.node.guests)
        return name


class Search(GuestDoor):
    """POST {"query": tags}: is there a data set with all of these tags."""

    async def post(self) -> None:
        query = self.body(_Query).query
        self.reply({"content": bool(await self.node.datasets.visible(await self.caller(), query))})


class Datasets(GuestDoor):
    """GET: what the caller may compute on. POST: publish an upload."""

    def is_open(self) -> bool:
        return self.request.method == "GET" and super().is_open()

    async def get(self) -> None:
        caller = await self.caller()
        found = await self.node.datasets.visible(caller)
        self.reply([self.node.datasets.describe(stored, caller) for stored in found])

    async def post(self) -> None:
        self.reply(await self.node.datasets.publish(await self.require(), self.body(Publish)))


class DatasetDoor(NodeDoor):
    """PATCH: change tags, description, rules. DELETE: unpublish, and say what ended."""

    async def patch(self, dataset: str) -> None:
        self.reply(await self.node.datasets.edit(await self.require(), int(dataset), self.body(Edit)))

    async def delete(self, dataset: str) -> None:
        self.reply(await self.node.datasets.unpublish(await self.require(), int(dataset)))


class MockRows(GuestDoor):
    """GET: the mock rows of a version of a data set, for whoever may compute on it."""

    async def get(self, dataset: str, version: str) -> None:
        await self.send_blob(*await self.node.datasets.open_mock(await self.caller(), int(dataset), int(version)))


# ------------------------------------------------------------------ models and workers


class WorkerIds(NodeDoor):
    """GET: ids of the Workers; those of others only for who may triage requests."""

    async def get(self) -> None:
        account = await self.require()
        sees_all = "can_triage_requests" in account.flags
        ids = [
            f"{session.user or 'guest'}-{number}"
            for number, session in enumerate(self.node.sessions.working(), start=1)
            if sees_all or session.user == account.username
        ]
        self.reply({"success": True, "workers": ids})


class ModelIds(NodeDoor):
    """GET: ids of the served models."""

    async def get(self) -> None:
        await self.require()
        self.reply({"success": True, "models": [model.id for model in await self.node.models.list()]})


class DetailedModels(NodeDoor):
    """GET: the served models with what may be done with each."""

    async def get(self) -> None:
        await self.require()
        listed = [
            {
                "id": model.id,
                "model_size": f"{model.nbytes / 1000:g}KB",
                "allow_download": model.allow_download,
                "allow_remote_inference": model.allow_remote_inference,
                "mpc": model.mpc,
            }
            for model in await self.node.models.list()
        ]
        self.reply({"success": True, "models": listed})


class ModelDoor(NodeDoor):
    """GET: a served model's safetensors bytes, where its owner allows that. DELETE: serve it no longer."""

    async def get(self, model_id: str) -> None:
        data = await self.node.models.download(await self.require(), model_id)
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("Content-Disposition", "attachment")
        self.finish(data)

    async def delete(self, model_id: str) -> None:
        await self.node.models.delete(await self.require(), model_id)
        self.reply({"success": True, "message": "Model deleted with success!"})


class SearchEncryptedModels(NodeDoor):
    """POST {"model_id"}: who holds the shares of a shared model. This Node serves none, so it is never found."""

    async def post(self) -> None:
        await self.require()
        self.body(_ModelQuery)
        raise NotFound("Model ID not found!")


NODE_RULES: list[tuple[str, type[Door]]] = [
    *MODEL_CENTRIC_RULES,  # first: each is tried in turn, and devices come the most often
    (r"/", Front),
    (r"/data-centric/identity/?", Identity),
    (r"/data-centric/status/?", Status),
    (r"/data-centric/workers/?", WorkerIds),
    (r"/data-centric/models/?", ModelIds),
    (r"/data-centric/models/([^/]{1,384})", ModelDoor),
    (r"/data-centric/detailed-models-list/?", DetailedModels),
    (r"/data-centric/dataset-tags/?", DatasetTags),
    (r"/data-centric/search/?", Search),
    (r"/data-centric/search-encrypted-models/?", SearchEncryptedModels),
    (r"/data-centric/datasets/?", Datasets),
    (r"/data-centric/datasets/([0-9]{1,18})", DatasetDoor),
    *JOB_RULES,
    (r"/data-centric/datasets/([0-9]{1,18})/([0-9]{1,18})/mock", MockRows),
    (r"/data-centric/session/?", SessionDoor),
    *STREAM_RULES,
    *BULK_RULES,
    *REQUEST_RULES,
    *NODE_ACCOUNT_RULES,
]


def node_application(
    node: GridNode,
    address: Any,
    cycles: Cycles,
    gauges: Gauges | None = None,
    *,
    pace: Callable[[], Pace] = Pace,
) -> Application:
    """All public routes of a Node; `address` gives what the card shows, `pace` how fast each large body has to come."""
    model_uploads = Uploads(cycles.blobs, node.max_upload_bytes)
    cycles.room.waiting = model_uploads.waiting
    return application(
        NODE_RULES if gauges is None else [*NODE_RULES, *GAUGE_RULES],
        node.accounts,
        node=node,
        address=address,
        note=node.audit.note,
        cycles=cycles,
        gauges=gauges,
        door="public",
        model_uploads=model_uploads,
        pace=pace,
    )
