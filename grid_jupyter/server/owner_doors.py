"""What a Node's owner sees and changes at the owner's door: data sets, jobs, and that something has changed."""

from __future__ import annotations

from typing import Any

import msgspec
from tornado.iostream import StreamClosedError

from grid_jupyter.errors import NotFound
from grid_jupyter.identity.accounts import Account
from grid_jupyter.identity.directory import account_of
from grid_jupyter.identity.roles import FLAGS, OWNER
from grid_jupyter.node.changes import TOPICS
from grid_jupyter.node.service import GridNode
from grid_jupyter.server.door import JsonDoor
from grid_jupyter.server.node_streams import UploadIn
from grid_jupyter.store.datasets import StoredDataset
from grid_jupyter.wire.messages import Edit, Publish
from grid_jupyter.wire.owner import Changed, OwnedDataset

OWNER_AT_DOOR = " (owner of this Node)"
"""Who acts at the owner's door. No account can be called so: names do not begin with a space."""
ACCOUNT = Account(0, OWNER_AT_DOOR, OWNER, frozenset(FLAGS), ())
LOOK_S = 2.0
"""How often the status is compared for what tells no change of its own: the Network, the disk."""


class NodeOwnerDoor(JsonDoor):
    """Base of the owner's routes that only a Node has: whoever can open the socket is its owner."""

    @property
    def node(self) -> GridNode:
        """The Node whose owner asks."""
        node: GridNode = self.settings["node"]
        return node


class OwnedUpload(UploadIn):
    """PUT, HEAD, PATCH /owner/uploads/<id>: as /data-centric/uploads/<id>, in the name of the Node's owner."""

    def is_open(self) -> bool:
        """Whoever can open the socket is the owner."""
        return True

    def _credential(self) -> None:
        """None is asked for, and none is looked at."""

    async def require(self, *flags: str) -> Account:
        return await publisher(self.node)


class OwnedDatasets(NodeOwnerDoor):
    """GET: all data sets, newest first. POST: publish an upload in the name of the Node's owner."""

    async def get(self) -> None:
        self.reply({"datasets": [owned(self.node, stored) for stored in await self.node.datasets.all()]})

    async def post(self) -> None:
        made = await self.node.datasets.publish(await publisher(self.node), self.body(Publish))
        self.reply(owned(self.node, await self.node.datasets.get(made.id)))


class OneOwnedDataset(NodeOwnerDoor):
    """PATCH: change tags, description, rules. DELETE: unpublish, and say what ended."""

    async def patch(self, dataset: str) -> None:
        await self.node.datasets.edit(ACCOUNT, int(dataset), self.body(Edit))
        self.reply(owned(self.node, await self.node.datasets.get(int(dataset))))

    async def delete(self, dataset: str) -> None:
        self.reply(await self.node.datasets.unpublish(ACCOUNT, int(dataset)))


class OwnerJobs(NodeOwnerDoor):
    """GET: the jobs of this Node, newest first."""

    async def get(self) -> None:
        self.reply({"jobs": await self.node.jobs.visible(await reader(self.node))})


class OwnerJob(NodeOwnerDoor):
    """DELETE: cancel a job, or delete its result."""

    async def delete(self, job: str) -> None:
        self.reply(await self.node.jobs.cancel(ACCOUNT, job))


class OwnerEvents(NodeOwnerDoor):
    """GET: a line of JSON now, and one for each change, for as long as the connection holds."""

    _closed = False

    def on_connection_close(self) -> None:
        self._closed = True

    async def get(self) -> None:
        self.set_header("Content-Type", "application/jsonl; charset=utf-8")
        changes, seen, told = self.node.changes, self.node.changes.numbers, await self._status()
        await self._line(Changed(changed=TOPICS, status=told))
        while not self._closed:
            changed = await changes.since(seen, LOOK_S)
            seen, status = changes.numbers, await self._status()
            if status != told:
                changed = sorted({*changed, "node"})
            if changed:
                told = status
                await self._line(Changed(changed=tuple(changed), status=status))

    async def _status(self) -> dict[str, Any]:
        status: dict[str, Any] = await self.settings["service"].status()
        del status["uptime_s"]  # it differs each time
        return status

    async def _line(self, line: Changed) -> None:
        self.write(msgspec.json.encode(line) + b"\n")
        try:
            await self.flush()
        except StreamClosedError:
            self._closed = True


async def publisher(node: GridNode) -> Account:
    """The account of the Node's owner that bears the Node's name, as `grid_jupyter.owner()` has it."""
    return await node.accounts.ensure(node.name, OWNER)


async def reader(node: GridNode) -> Account:
    """The same account where there is one, which may read what it published; else one that may read nothing."""
    try:
        row = await node.accounts.directory.row_named(node.name)
    except NotFound:
        return ACCOUNT
    return account_of(row) if row.role == OWNER else ACCOUNT


def owned(node: GridNode, stored: StoredDataset) -> OwnedDataset:
    """A data set with all that its rules say."""
    used = node.usage.of(stored.id)
    return OwnedDataset(
        info=node.datasets.describe(stored, stored.owner),
        allowed_users=stored.allowed_users,
        compute_users=stored.compute_users,
        public_tags=stored.public_tags,
        nbytes=stored.nbytes,
        created=stored.created,
        opened=used.times,
        opened_by=len(used.users),
        opened_last=used.last,
    )


OWNER_NODE_RULES: list[tuple[str, type[JsonDoor]]] = [
    (r"/owner/uploads/([0-9a-f]{32})", OwnedUpload),
    (r"/owner/datasets", OwnedDatasets),
    (r"/owner/datasets/([0-9]{1,18})", OneOwnedDataset),
    (r"/owner/jobs", OwnerJobs),
    (r"/owner/jobs/([0-9a-f]{16})", OwnerJob),
    (r"/owner/events", OwnerEvents),
]
