"""Gate 4 of one session: which data it has open, and whether a reader may have what derives from it."""

from __future__ import annotations

from grid_jupyter.errors import GetNotPermittedError, GridError, LimitExceededError, from_wire
from grid_jupyter.node import policy
from grid_jupyter.node.audit import Audit
from grid_jupyter.node.datasets import Datasets, rules_of
from grid_jupyter.node.policy import Rules
from grid_jupyter.store.datasets import StoredDataset
from grid_jupyter.wire import worker
from grid_jupyter.wire.limits import MAX_DATASETS_OPEN

_MOST_FAULTS = 4096

Source = StoredDataset | Rules
"""A version of a data set, whose rules are looked up each time; or what came from another Node, with its own."""


class Gate:
    """The sources of a session by their number, which is their bit in the lineage of values."""

    def __init__(self, datasets: Datasets, audit: Audit) -> None:
        self._datasets = datasets
        self._audit = audit
        self._sources: list[Source] = []
        # what failed and made no value that would tell, by lineage: one must not hide that there is another
        self._faults: dict[tuple[int, ...], worker.Fault] = {}

    def number(self, source: Source) -> int:
        """The number of a source. Raises LimitExceededError."""
        for number, known in enumerate(self._sources):
            if _key(known) == _key(source):
                return number
        if len(self._sources) >= MAX_DATASETS_OPEN:
            raise LimitExceededError(f"a session has at most {MAX_DATASETS_OPEN} data sets open; start another one")
        self._sources.append(source)
        return len(self._sources) - 1

    def has_open(self, dataset: int) -> bool:
        """Whether something of this data set was opened."""
        return any(isinstance(source, StoredDataset) and source.id == dataset for source in self._sources)

    def named(self, numbers: tuple[int, ...]) -> list[Source]:
        """The sources of these numbers."""
        return [self._sources[number] for number in numbers]

    def all(self) -> list[Source]:
        """All sources, by their number."""
        return list(self._sources)

    async def rules(self, numbers: tuple[int, ...]) -> list[Rules]:
        """What the owners of these sources say now. Raises ObjectNotFoundError for one that was unpublished."""
        return [
            source if isinstance(source, Rules) else rules_of(await self._datasets.get(source.id, source.version))
            for source in self.named(numbers)
        ]

    async def closed(self, caller: str) -> tuple[int, ...]:
        """The sources that this caller may not read."""
        rules = await self.rules(tuple(range(len(self._sources))))
        return tuple(number for number, said in enumerate(rules) if not policy.may_read(caller, said))

    def is_open(self, reader: str, reply: worker.Fetched) -> bool:
        """Whether a value passes without anybody's rules being looked up: by the Worker's own account it derives from
        no data set, and nothing failed before it. Everything else is for `check`."""
        if reply.sources or reply.earlier or self._faults:
            return False
        policy.check_release(reader, ())
        return True

    async def check(self, reader: str, reply: worker.Reply, what: str = "value", *, ahead: bool = False) -> list[Rules]:
        """The rules of what a value derives from, if this reader may have it. That something failed may tell of
        the data as well, so it passes the same gate; `ahead` of the reader's question, it is kept until that comes.
        What is decided goes to the audit log.

        Raises GetNotPermittedError, or what failed.
        """
        rules = await self.sources(reader, reply, ahead=ahead)
        datasets = sorted(said.dataset for said in rules)
        try:
            policy.check_release(reader, rules)
        except GetNotPermittedError:
            self._audit.note("refused", reader, what=what, datasets=datasets)
            raise
        if rules:
            self._audit.note("released", reader, what=what, datasets=datasets)
        if isinstance(reply, worker.Broken):
            raise from_wire(reply.fault.code, reply.fault.error, reply.fault.value)
        return rules

    async def sources(self, reader: str, reply: worker.Reply, *, ahead: bool = False) -> list[Rules]:
        """The rules of what an answer derives from, a value or a failure. Raises what failed before and this reader
        may know of; `ahead` as in `check`."""
        if not isinstance(reply, worker.Fetched | worker.Measured | worker.Broken):
            raise GridError("the Worker answered a question for values with something else")
        for fault in reply.earlier:
            self._faults.setdefault(fault.sources, fault)
        if len(self._faults) > _MOST_FAULTS:
            raise LimitExceededError("too much failed unread in this session; start another one")
        for sources, fault in list(self._faults.items()):
            if policy.may_read_all(reader, await self.rules(sources)):
                if not ahead:
                    self._faults.pop(sources, None)
                raise from_wire(fault.code, fault.error, fault.value)
        return await self.rules(reply.fault.sources if isinstance(reply, worker.Broken) else reply.sources)


def _key(source: Source) -> object:
    return source if isinstance(source, Rules) else (source.id, source.version)
