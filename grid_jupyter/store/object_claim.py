"""Which state directory a prefix of an object store belongs to: its Node alone deletes what is there."""

from __future__ import annotations

import secrets
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec

from grid_jupyter.errors import BadRequest, Conflict
from grid_jupyter.store.object_address import (
    MEMORY,
    Debts,
    ObjectAddress,
    Reading,
    Remembered,
    at_url,
    remember,
    remembered,
)
from grid_jupyter.store.objects import MARK, ObjectStore


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in a prefix: the number of a state directory, and the name that its Node had."""

    owner: str
    node: str = ""


def claim(state: Path, address: ObjectAddress | None, node: str) -> ObjectStore | None:
    """The object store of the Node of a state directory, which is the prefix's only one; None where it has none.

    Raises BadRequest where the directory's bytes are elsewhere, Conflict where the prefix is another's, and what
    ObjectStore raises.
    """
    known = remembered(state)
    if address is None:
        if known is not None:
            raise BadRequest(
                f"the bytes of this Node are in {known.url}: start it with --objects {known.url}. To have them here "
                "again, make a backup (jupyter grid backup), and restore it into another directory"
            )
        return None
    store = ObjectStore(address, Reading(state), Debts(state))
    mark = store.mark()
    if mark is not None and (known is None or _owner(mark) != known.owner):
        raise Conflict(
            f"{address.url} belongs to a Node with another state directory, as {MARK} there says: give each Node a "
            "prefix of its own. Where that Node is gone for good, delete what is under the prefix first"
        )
    if mark is None and known is not None and known.url != address.url:
        raise BadRequest(
            f"the bytes of this Node are in {known.url}: copy all that is there, {MARK} too, to {address.url} first"
        )
    if mark is None and known is not None and known.marked:
        raise BadRequest(
            f"{MARK} is not in {address.url} any more, by which that is known to be this Node's: is the disk mounted, "
            f"is it the right bucket? Where its objects are gone for good, remove {state / MEMORY} and start again"
        )
    owner = secrets.token_hex(16) if known is None else known.owner
    file = None if address.file is None else str(address.file)
    mine = Remembered(url=address.url, owner=owner, options=file, marked=mark is not None)
    remember(state, mine)  # first: killed in between it goes on here
    if mark is None:
        try:
            store.set_mark(msgspec.json.encode(Mark(owner=owner, node=node)))
        except BaseException:
            if known is None:
                (state / MEMORY).unlink()
            raise
        if _owner(store.mark() or b"") != owner:
            if known is None:
                (state / MEMORY).unlink()
            raise Conflict(f"another Node has taken {address.url} just now: give each Node a prefix of its own")
        remember(state, msgspec.structs.replace(mine, marked=True))
    return store


def of_backup(state: Path) -> tuple[ObjectStore | None, AbstractContextManager[None]]:
    """The object store that a state directory remembers, and in what it is read: nothing is deleted there meanwhile.

    Raises BadRequest, and what ObjectStore raises.
    """
    known = remembered(state)
    if known is None:
        return None, nullcontext()
    return ObjectStore(at_url(known.url, None if known.options is None else Path(known.options))), Reading(
        state
    ).alone()


def _owner(mark: bytes) -> str:
    try:
        return msgspec.json.decode(mark, type=Mark).owner
    except msgspec.DecodeError:
        return ""
