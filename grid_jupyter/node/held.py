"""Values that wait on the Node for their owners' decision: kept as they were when they were asked for, shown to the
owners by how they came about, and handed out by an approval alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grid_jupyter.errors import GridError, LimitExceededError, OutcomeUnknownError, from_wire
from grid_jupyter.node import policy
from grid_jupyter.node.bulk import wait_until_filled
from grid_jupyter.node.gate import Source
from grid_jupyter.node.policy import Rules
from grid_jupyter.node.requests import Requests
from grid_jupyter.node.verdicts import VALUE, Asked, Verdict, binding_of
from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.store.datasets import StoredDataset
from grid_jupyter.wire import worker

MAX_HELD_BYTES = 256 << 20
"""Bytes of values that are held for one user at once."""
_PIECE = 1 << 20


@dataclass(frozen=True)
class Held:
    """A Worker's answer to Fetch: its bytes are the payload, or in the descriptor (-1: none), which another closes.
    `gone` is done when the Worker is."""

    reply: worker.Reply
    payload: memoryview
    descriptor: int
    gone: asyncio.Future[None]


@dataclass(frozen=True)
class Released:
    """A value that leaves by an approval; its bytes are in the descriptor, which the caller closes."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    readers: tuple[str, ...]
    descriptor: int


class HeldValues:
    """The values of all users that wait, or were approved and not fetched."""

    def __init__(self, requests: Requests, blobs: BlobStore) -> None:
        self._requests = requests
        self._blobs = blobs

    async def ask(
        self,
        asker: str,
        reason: str,
        value: Held,
        sources: Sequence[tuple[Source, Rules]],
        explained: worker.Explained | None,
        named: Sequence[Source],
    ) -> Verdict:
        """Keep a value and ask its owners. `named` are the session's sources by number, as `explained` has them.

        What could tell the asker of the value, down to its size, is not told: a failed computation, or a value that
        is too large to be held, is a request like others, and its owners see what it is.
        """
        key = secrets.token_hex(16)
        rules = tuple(said for _, said in sources)
        form = _form(value.reply)
        blob, digest = "", ""
        if "error" not in form:
            room = MAX_HELD_BYTES - await self._requests.held_bytes(asker)
            if form["nbytes"] > room:
                error = LimitExceededError(
                    f"the value is larger than what is held for one user ({MAX_HELD_BYTES >> 20} MiB in all); "
                    f"withdraw other requests, or ask for less"
                )
                form = {"nbytes": 0, "code": error.code, "error": str(error)}
            else:
                blob, digest = await self._keep(key, value, form["nbytes"])
        form["readers"] = list(dict.fromkeys((*policy.readers(rules), asker)))
        versions = tuple(one.version if isinstance(one, StoredDataset) else 0 for one, _ in sources)
        about = [{"dataset": said.dataset, "version": version} for said, version in zip(rules, versions, strict=True)]
        asked = Asked(
            kind=VALUE,
            key=key,
            asker=asker,
            binding=binding_of({"key": key, "sha256": digest, "form": form, "data": about}),
            sources=rules,
            versions=versions,
            reason=reason,
            shown=_shown(form, explained, named),
        )
        kept = False
        try:
            verdict = await self._requests.decide(asked, blob=blob or None, held=form)
            kept = bool(verdict.request)
        except OutcomeUnknownError:
            kept = True  # a row may name it
            raise
        finally:
            if blob and not kept:
                await asyncio.to_thread(self._blobs.delete, blob)
        return verdict

    async def release(self, asker: str, request: int) -> Released:
        """Hand out what was approved, as it was when it was asked for: durable in the audit log before it leaves.
        The same asker can fetch it again until the approval ends.

        Raises GetNotPermittedError, ObjectNotFoundError, or what the approved computation failed with.
        """
        found = await self._requests.use(request, asker, again=True)
        form = found.held or {}
        if found.blob is None:
            raise from_wire(form.get("code"), form.get("error"))
        return Released(
            dtype=str(form["dtype"]),
            shape=tuple(form["shape"]),
            nbytes=int(form["nbytes"]),
            readers=tuple(form["readers"]),
            descriptor=await self._blobs.open(found.blob),
        )

    async def _keep(self, key: str, value: Held, nbytes: int) -> tuple[str, str]:
        """The name of a blob with the value's bytes, and their SHA-256."""
        if value.descriptor >= 0:
            await wait_until_filled(value.descriptor, nbytes, value.gone)

        def keep() -> tuple[str, str]:
            digest = hashlib.sha256()
            with self._blobs.begin(key) as upload:
                for begin in range(0, nbytes, _PIECE):
                    end = min(begin + _PIECE, nbytes)
                    piece: Any = value.payload[begin:end]
                    if value.descriptor >= 0:
                        piece = os.pread(value.descriptor, end - begin, begin)
                    digest.update(piece)
                    upload.write(piece)
                return upload.commit().name, digest.hexdigest()

        return await asyncio.to_thread(keep)


def _form(reply: worker.Reply) -> dict[str, Any]:
    if isinstance(reply, worker.Broken):
        return {"nbytes": 0, "code": reply.fault.code, "error": reply.fault.error}
    if not isinstance(reply, worker.Fetched):
        raise GridError("the Worker answered a read with something else")
    return {"nbytes": reply.nbytes, "dtype": reply.dtype, "shape": list(reply.shape)}


def _shown(form: dict[str, Any], explained: worker.Explained | None, named: Sequence[Source]) -> dict[str, Any]:
    """What the owners are shown of a value: what it is, how it was computed, how many rows it rests on."""
    shown: dict[str, Any] = {"value": {key: form[key] for key in ("dtype", "shape", "nbytes", "error") if key in form}}
    if explained is None:
        return {**shown, "computed": [], "cut": True, "rows": []}
    lines = [f"{step.name} = {_source(step, named)}{step.text}" for step in explained.steps]
    return {
        **shown,
        "computed": lines,
        "result": explained.result,
        "operations": explained.operations,
        "left_out": explained.left_out,
        "cut": explained.cut,
        "rows": [
            {"dataset": _name(bound.source, named), "at_most": bound.at_most, "of": bound.total}
            for bound in explained.rows
        ],
    }


def _source(step: worker.Step, named: Sequence[Source]) -> str:
    if step.source < 0:
        return ""
    part = f", {step.tensor}" if step.tensor else ""
    return f"{_name(step.source, named)}{part}: "


def _name(number: int, named: Sequence[Source]) -> str:
    if not 0 <= number < len(named):
        return "something whose size nobody is told"
    source = named[number]
    if isinstance(source, StoredDataset):
        name = f" ({source.name})" if source.name else ""
        return f"data set {source.id} version {source.version}{name} of {source.owner}"
    return f"a value from the Node {source.origin}"
