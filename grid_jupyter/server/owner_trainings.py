"""The trainings of a Node at its owner's door: which there are, ending and deleting them."""

from __future__ import annotations

from grid_jupyter.cycles.service import Cycles
from grid_jupyter.server.door import JsonDoor
from grid_jupyter.server.metrics_doors import measured
from grid_jupyter.server.node_streams import byte_number
from grid_jupyter.server.owner_doors import ACCOUNT, NodeOwnerDoor
from grid_jupyter.wire.training import EndOrDelete


class OwnerTrainingDoor(NodeOwnerDoor):
    """Base of them."""

    @property
    def cycles(self) -> Cycles:
        """The trainings of the Node."""
        cycles: Cycles = self.settings["cycles"]
        return cycles


class OwnerTrainings(OwnerTrainingDoor):
    """GET: all of them, oldest first. POST: end or delete one."""

    async def get(self) -> None:
        self.reply({"trainings": self.cycles.ending.hosted()})

    async def post(self) -> None:
        body = self.body(EndOrDelete)
        ending, note = self.cycles.ending, self.node.audit.note
        if body.delete:
            self.reply(await ending.delete(ACCOUNT, body.name, body.version))
        else:
            self.reply(await ending.end(ACCOUNT, body.name, body.version))
        kind = "training-deleted" if body.delete else "training-ended"
        note(kind, ACCOUNT.username, name=body.name, version=body.version)


class OwnerMeasured(OwnerTrainingDoor):
    """GET ?name=&version=&after=: what devices measured in a training, as GET /model-centric/metrics."""

    async def get(self) -> None:
        after = byte_number(self.get_query_argument("after", "0"))
        name, version = self.get_query_argument("name", ""), self.get_query_argument("version", "") or None
        self.reply(measured(await self.cycles.metrics.read(ACCOUNT, name, version, after)))


OWNER_TRAINING_RULES: list[tuple[str, type[JsonDoor]]] = [
    (r"/owner/trainings", OwnerTrainings),
    (r"/owner/trainings/metrics", OwnerMeasured),
]
