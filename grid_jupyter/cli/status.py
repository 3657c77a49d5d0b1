"""`jupyter grid status`: every Node and Network of this user on this machine, and how each stands."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any, NamedTuple

from grid_jupyter.cli.places import Place, places
from grid_jupyter.cli.reset import size
from grid_jupyter.errors import GridError
from grid_jupyter.server.owner_client import OwnerClient


class _Row(NamedTuple):
    place: Place
    told: dict[str, Any]  # what the process says of itself; empty if it does not run
    figures: dict[str, Any]  # of /owner/overview


def status(options: argparse.Namespace) -> int:
    """Show every Node and Network of the data directory, and how those that run are."""
    rows = asyncio.run(_ask_all(places()))
    if options.json:
        shown = [
            {"state_dir": str(row.place.state_dir), "pid": row.place.running.pid if row.place.running else None}
            | {"overview": row.figures or None}
            | (row.told or {"role": row.place.role, "name": row.place.name, "status": row.place.state})
            for row in rows
        ]
        print(json.dumps({"processes": shown}), flush=True)
        return 0
    if not rows:
        print("There is no grid here yet. Start one with 'jupyter grid up', or a Node with 'jupyter grid node'.")
        return 0
    print(_table([_HEADER, *(_line(row) for row in rows)]))
    for row in rows:
        print("\n".join(_details(row)))
    return 0


async def _ask_all(found: list[Place]) -> list[_Row]:
    async def ask(place: Place) -> _Row:
        if place.running is None:
            return _Row(place, {}, {})
        owner = OwnerClient(place.running.socket)
        try:
            told = await owner.status()
        except GridError as error:
            detail = {"role": place.role, "name": place.name, "status": "silent", "detail": str(error)}
            return _Row(place, detail, {})
        try:
            return _Row(place, told, await owner.forward("GET", "/owner/overview"))
        except GridError:  # of a version that has none
            return _Row(place, told, {})

    return list(await asyncio.gather(*(ask(place) for place in found)))


_HEADER = ("", "NAME", "ADDRESS", "STATE", "NETWORK", "ISOLATION", "DEVICE", "SESSIONS", "DATA SETS")


_OWED = (("to_copy", "blobs wait to be copied there"), ("to_delete", "objects wait to be deleted"))


def _line(row: _Row) -> tuple[str, ...]:
    told, place = row.told, row.place
    if "address" not in told:
        return (place.role, place.name, "-", told.get("status", place.state), "-", "-", "-", "-", "-")
    if place.role == "network":
        nodes = ", ".join(told.get("nodes", ())) or "no Node"
        return (place.role, place.name, told["address"], told["status"], nodes, "-", "-", "-", "-")
    network = told["network"]
    joined = f"{network['state']} {network['address'] or ''}".strip()
    counts = (str(told["sessions"]), str(told["datasets"]))
    return (
        place.role,
        place.name,
        told["address"],
        told["status"],
        joined,
        _isolation(told),
        told["device"],
        *counts,
    )


def _details(row: _Row) -> list[str]:
    """What stands below the table."""
    place, figures = row.place, row.figures
    name = f"{place.role} {place.name}"
    if place.state == "stopped":
        start = "jupyter grid network" if place.role == "network" else f"jupyter grid node --name {place.name}"
        return ["", f"{name} does not run. Its state is in {place.state_dir}; start it with: {start}"]
    if not figures:
        return ["", f"{name} is {row.told.get('status', place.state)}. {row.told.get('detail', '')}".rstrip()]
    versions, disk = figures["versions"], figures["disk"]
    used = ", ".join(f"{kind} {size(value)}" for kind, value in disk["used"].items())
    lines = [
        "",
        f"{name}: grid_jupyter {versions['grid_jupyter']}, protocol {versions['protocol']}, "
        f"schema {versions['schema']}, Python {versions['python']}"
        + (f", torch {versions['torch']}" if versions.get("torch") else ""),
        f"  disk       {used}; {size(disk['free'])} of {size(disk['size'])} free",
    ]
    if place.role == "network":
        return [*lines, f"  Nodes      {figures['nodes']} alive"]
    quotas, sessions, workers, trainings = (figures[key] for key in ("quotas", "sessions", "workers", "trainings"))
    jobs = ", ".join(f"{number} {state}" for state, number in sorted(figures["jobs"].items())) or "none"
    phases = ", ".join(f"{number} {phase}" for phase, number in sorted(trainings["phases"].items())) or "none"
    return [
        *lines,
        *_objects(figures.get("objects")),
        f"  at most    {size(quotas['upload'])} a data set, {size(quotas['jobs_of_one_user'])} the jobs of one user, "
        f"{size(quotas['trainings'])} trainings, {size(quotas['trainings_of_one_host'])} those of one account",
        f"  sessions   {sessions['connected']} connected, {sessions['computing']} computing, "
        f"at most {sessions['at_most']}",
        f"  Workers    {workers['used']} in use, {workers['spare']} spare",
        f"  jobs       {jobs}",
        f"  trainings  {phases}; {trainings['completed']} cycles complete, {trainings['reports']} reports and "
        f"{trainings['devices']} devices in open ones",
    ]


def _objects(told: dict[str, Any] | None) -> list[str]:
    if told is None:
        return []
    owed = [f"{told[key]} {what}" for key, what in _OWED if told[key]]
    if told["unnamed"]:
        owed.append(f"{told['unnamed']} ({size(told['unnamed_bytes'])}) that no row names (see --objects-sweep)")
    return [
        f"  objects    {told['objects']} ({size(told['bytes'])}) in {told['url']}, copies of {size(told['cached'])} of "
        f"at most {size(told['cache'])} here" + "".join(f"; {one}" for one in owed)
    ]


def _isolation(told: dict[str, Any]) -> str:
    found = str(told["isolation"]).partition(":")[0] or "-"
    if not told.get("isolation_required"):
        return found
    return f"{found}, required" + (": computes nothing" if found.startswith("reduced") else "")


def _table(lines: list[tuple[str, ...]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
