"""`jupyter grid trainings`: the models that devices train on a Node of this machine, ending and deleting them."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

from grid_jupyter.cli.owner import target
from grid_jupyter.errors import BadRequest
from grid_jupyter.server.owner_client import OwnerClient
from grid_jupyter.tensors.text import plain


def trainings(options: argparse.Namespace) -> int:
    """Show them; or end or delete one. Raises GridError."""
    owner = OwnerClient(target(options).socket)
    name = options.end or options.delete
    if name is None:
        found = asyncio.run(owner.forward("GET", "/owner/trainings"))["trainings"]
        print(json.dumps({"trainings": found}) if options.json else _table(found), flush=True)
        return 0
    if options.version is None:
        raise BadRequest("say which version: --version VERSION")
    body = {"name": name, "version": options.version, "delete": options.delete is not None}
    said = asyncio.run(owner.forward("POST", "/owner/trainings", body))
    done = f"{plain(name)} {plain(options.version)} is {'deleted' if options.delete else 'over; its checkpoints stay'}"
    print(json.dumps(said) if options.json else done, flush=True)
    return 0


def _table(found: list[dict[str, Any]]) -> str:
    if not found:
        return "Nobody hosts a model for training here."
    lines = []
    for one in found:
        cycles = f"{one['completed']} of {one['num_cycles']}" if one["num_cycles"] else str(one["completed"])
        waits = f"; {plain(one['problem'])}" if one["problem"] else ""
        lines.append(
            f"{plain(one['name'])} {plain(one['version'])}: {one['phase']}, {cycles} cycles complete, "
            f"{one['workers']} devices and {one['reports']} reports in this one, hosted by {plain(one['owner'])}{waits}"
        )
    return "\n".join(lines)
